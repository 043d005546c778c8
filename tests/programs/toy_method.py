"""Toy, for test_house.py: the mean color of an image, and a linear layer."""
import torch

RECIPES = {"scenes": {"epochs": 1, "pretrained": False}}
REDUCTION = "mean"


class build(torch.nn.Module):
    def __init__(self, classes, *, bias=True):
        super().__init__()
        self.head = torch.nn.Linear(3, len(classes), bias)

    def forward(self, images):
        return self.head(images.mean((2, 3)))


def loss(logits, targets, power=1.0):
    return ((logits.sigmoid() - targets).abs() ** power).mean()


def param_groups(model, lr, weight_decay):
    return [{"params": [*model.parameters()], "lr": lr}]
