"""Networks: the CIFAR residual networks of the paper, and the registry that also takes torchvision's names."""
