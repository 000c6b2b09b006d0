"""What the product corrects in the published definitions, for the reader of a report."""

ERRATA = (
    ("Eq. 27", "The published transition surrogate is not 0 for equal checkpoints; it is taken per token, relative to both."),
    ("Eq. 18–19", "The published soft extrema are biased by ln n/β; log-mean-exp is used, still optimistic by up to that."),
    ("Eq. 21", "The published limit picks the closest-scored pair of all experts; the exact overlap stays with co-active ones."),
    ("Prop. 3", "The smooth quantities do not tend to the exact ones as stated; both are reported, no limit is claimed."),
    ("Eq. 14", "With a selection bias there is no shared gate weight at the boundary; the exact one-swap jump is reported."),
    ("Eq. 31–32", "A rising minimum occupancy could pay for a rewrite; the occupancy terms are clipped."),
    ("§5", "Coordinate drift on the post-gain state moves with a compensated gain; the gate uses the pre-gain state (z)."),
    ("Thm. 1", "It needs positive homogeneity and rows of W1 ≥ d; layers without them are measured and named."),
)  # fmt: skip
