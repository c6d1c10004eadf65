"""One image: decoded to grey levels, its lungs, what a view shows of it, how training changes it."""
