"""Training of networks: the loop, labelled slices, classifiers, the lung U-Net, autoencoders."""
