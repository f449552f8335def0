"""What a backward pass by hand gives beyond the gradient: a walk each, a file each."""
