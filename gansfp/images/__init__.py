"""Single images: decoding to grey levels, lung masks, views, and random changes for training."""
