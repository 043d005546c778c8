"""A data set for test_house.py: dark images are a, bright ones are b."""
import numpy as np


def read_toy(root, split):
    paths = [f"{root}/{i}.png" for i in range(8)]
    return ["a", "b"], paths, np.array([[1, 0], [0, 1]] * 4, np.int8)
