"""A data set for test_house.py and test_val.py: dark images are a, bright ones are b.

It also reads the split val, in which one label of each class is wrong.
"""
import numpy as np


def read_toy(root, split):
    paths = [f"{root}/{i}.png" for i in range(8)]
    targets = np.array([[1, 0], [0, 1]] * 4, np.int8)
    if split == "val":
        targets[:2] = targets[[1, 0]]
    return ["a", "b"], paths, targets
