"""What do handwritten digits have in common? Principal components and a classifier's tuning, on all engines.

    hpcviews run --n 4 --launcher mpiexec examples/digits_pca.py [--out digits_pca.png]

1. The 1797 digits of scikit-learn are scattered over the engines. Each engine sums up its own part, and the
   sums give the covariance and its eigenvectors: images of what distinguishes digits, the "eigen-digits".
2. A load-balanced sweep asks how well digits are recognized by their k nearest neighbours, when only the
   first few components of each image are kept. Whichever engine is free takes the next setting.
"""

import argparse
import time
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import hpcviews

plt.switch_backend("Agg")  # draws into a file, also where there is no screen

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="digits_pca.png", help="where to save the picture [%(default)s]")
options = parser.parse_args()

client = hpcviews.Client()  # the cluster that `hpcviews run` started for this script
engines = client[:]
balanced = client.load_balanced_view()

images, labels = load_digits(return_X_y=True)  # (1797, 64) pixels from 0 (white) to 16 (black), and 0 … 9
print(f"{len(images)} handwritten digits of 8 x 8 pixels, scattered over {len(client)} engines")

# ---------------------------------------- 1. principal components from per-engine sums


def sum_up(part):
    """What an engine contributes: how many images, their sum, and the sum of their outer products."""
    return len(part), part.sum(axis=0), part.T @ part


begun = time.perf_counter()
engines.scatter("part", images, block=True)
sums = engines.apply_sync(sum_up, hpcviews.Reference("part"))  # each engine passes the `part` it has
count, total, outer = (sum(column) for column in zip(*sums, strict=True))

mean = total / count
covariance = (outer - count * np.outer(mean, mean)) / (count - 1)
variances, vectors = np.linalg.eigh(covariance)
variances, components = variances[::-1], vectors.T[::-1]  # largest first, one component a row
share = variances / variances.sum()
took_s = time.perf_counter() - begun

# The same in this process alone, another way: the singular values of the centred images.
_, singular, directions = np.linalg.svd(images - images.mean(axis=0), full_matrices=False)
difference = np.abs(singular**2 / (len(images) - 1) - variances).max() / variances[0]
# Eigenvectors are defined up to their sign, so compare the angle between each pair.
agreement = np.abs(np.sum(components[:20] * directions[:20], axis=1)).min()
if difference > 1e-12 or agreement < 1 - 1e-9:
    raise SystemExit(f"the engines' components are not numpy's: {difference=:.1e}, {agreement=:.12f}")

print(f"principal components: {took_s * 1e3:.0f} ms; numpy alone finds the same (to {difference:.0e})")
print("  variance kept: " + ", ".join(f"{share[:n].sum():.1%} by {n} components" for n in (2, 10, 30)))

# ---------------------------------------- 2. a load-balanced sweep

neighbours = [1, 2, 3, 5, 8, 12, 20]
kept = [1, 2, 3, 5, 8, 12, 20, 30, 64]
settings_k, settings_n = zip(*[(k, n) for k in neighbours for n in kept], strict=True)

projected = (images - mean) @ components.T
fold = np.random.default_rng(0).permutation(len(images)) % 5  # five-fold cross-validation


def knn_error(k, n_components):
    """Share of digits whose k nearest neighbours in the other folds vote for a wrong digit.

    Runs on an engine, and finds `projected`, `labels` and `fold` there because they are pushed below.
    """
    points = projected[:, :n_components]
    wrong = 0
    for held_out in range(5):
        test, train = points[fold == held_out], points[fold != held_out]
        # |a - b|^2 = |a|^2 - 2 ab + |b|^2, and |a|^2 is the same for all neighbours b of a
        distance = (train**2).sum(axis=1) - 2 * test @ train.T
        nearest = np.argpartition(distance, k - 1, axis=1)[:, :k]
        votes = np.eye(10)[labels[fold != held_out][nearest]].sum(axis=1)
        wrong += np.count_nonzero(votes.argmax(axis=1) != labels[fold == held_out])
    return wrong / len(points)


engines.push({"projected": projected, "labels": labels, "fold": fold}, block=True)
begun = time.perf_counter()
sweep = balanced.map_async(knn_error, settings_k, settings_n)
errors = np.array(sweep.get()).reshape(len(neighbours), len(kept))
took_s = time.perf_counter() - begun

best = errors.argmin()
best_k, best_n = settings_k[best], settings_n[best]
here = knn_error(best_k, best_n)
if abs(here - errors.min()) * len(images) > 1.5:  # a tie broken by another rounding may cost a digit, no more
    raise SystemExit(f"the engines found an error of {errors.min():.4f}, this process {here:.4f}")

print(f"recognition by nearest neighbours, {errors.size} settings: {took_s:.2f} s")
print(f"  best: k = {best_k} with {best_n} components, {errors.min():.2%} of the digits wrong")
print(f"  for comparison: k = {neighbours[0]} with all {kept[-1]} components, {errors[0, -1]:.2%}")

tasks = Counter(task["engine_id"] for task in sweep.metadata)
busy_s = Counter()
for task in sweep.metadata:
    busy_s[task["engine_id"]] += (task["completed"] - task["started"]).total_seconds()
print("who did what:")
for engine, (n_images, _, _) in zip(client.engines.values(), sums, strict=True):
    rank = "no MPI" if engine.rank is None else f"rank {engine.rank}"
    print(
        f"  engine {engine.id} ({rank}, {engine.host}, pid {engine.pid}): {n_images} images, "
        f"{tasks[engine.id]} settings in {busy_s[engine.id]:.2f} s"
    )

# ---------------------------------------- 3. the picture

figure = plt.figure(figsize=(15, 5.6), layout="constrained")
left, middle, right = figure.subfigures(1, 3, width_ratios=[1.05, 1.1, 1.25])

left.suptitle("Eigen-digits, and their share of the variance")
for i, axes in enumerate(left.subplots(4, 3).flat):
    if i == 0:
        axes.imshow(mean.reshape(8, 8), cmap="gray_r", vmin=0)
        axes.set_title("mean", fontsize=9)
    else:
        limit = np.abs(components[i - 1]).max()
        axes.imshow(components[i - 1].reshape(8, 8), cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_title(f"{i}: {share[i - 1]:.1%}", fontsize=9)
    axes.set_axis_off()

axes = middle.subplots()
axes.set_title(f"All {len(images)} digits by their first two components")
colors = plt.colormaps["tab10"]
for digit in range(10):
    chosen = projected[labels == digit]
    axes.scatter(chosen[:, 0], chosen[:, 1], s=9, alpha=0.45, color=colors(digit), linewidths=0)
for digit in range(10):
    x, y = np.median(projected[labels == digit], axis=0)[:2]
    axes.text(
        x, y, str(digit), ha="center", va="center", weight="bold", color="white",
        bbox={"boxstyle": "circle,pad=0.25", "facecolor": colors(digit), "edgecolor": "white"},
    )  # fmt: skip
axes.set_xlabel(f"component 1 ({share[0]:.1%} of the variance)")
axes.set_ylabel(f"component 2 ({share[1]:.1%})")
axes.set_aspect("equal", adjustable="datalim")

axes = right.subplots()
axes.set_title("Digits recognized wrongly (%), five-fold cross-validation")
# Errors go from 1 % to 70 %, so colour by their logarithm.
axes.imshow(np.log(errors), cmap="viridis_r", aspect="auto")
for (row, column), error in np.ndenumerate(errors):
    color = "white" if error > 0.06 else "black"  # readable on dark and on bright cells
    axes.text(column, row, f"{100 * error:.1f}", ha="center", va="center", fontsize=9, color=color)
row, column = np.unravel_index(best, errors.shape)
axes.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="red", linewidth=2.5))
axes.set_xticks(range(len(kept)), kept)
axes.set_yticks(range(len(neighbours)), neighbours)
axes.set_xlabel("components kept")
axes.set_ylabel("neighbours k")

figure.savefig(options.out, dpi=110)
print(f"picture: {options.out}")
