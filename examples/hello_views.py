"""The views on one screen: hpcviews run --n 4 examples/hello_views.py"""

import os

import numpy as np

import hpcviews

client = hpcviews.Client()  # the cluster that `hpcviews run` started
view = client[:]  # all its engines
print("engines", client.ids, "are processes", view.apply_sync(os.getpid))

view["x"] = 20  # a name on every engine
view.execute("y = 2 * x + 2", block=True)
print("y is", view["y"])

view.scatter("part", np.arange(10), block=True)
print("sums of the parts:", view.apply_sync(lambda part: int(part.sum()), hpcviews.Reference("part")))
print("squares:", view.gather("part ** 2", block=True))

balanced = client.load_balanced_view()  # each call goes to whichever engine is free
print("cubes:", balanced.map_sync(lambda x: x**3, range(10)))
