"""Networks of classifiers: architectures by timm's names, pretrained weights, and finished classifiers on disk."""
