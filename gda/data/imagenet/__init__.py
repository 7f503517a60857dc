"""The label files of ImageNet: its devkit, lists of synsets, and the names that WordNet has for them."""
