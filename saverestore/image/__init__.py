"""What can be done with an image without a domain: find any page of it, compare, turn it into other files. Pure."""
