"""What the tensors themselves say: the weights ledger, the vocabulary, the experts' identity."""

from __future__ import annotations

from moe_atlas.views.view import View, flag, groups, integer, integers, named, number, part, parts, text


class BothCounts(View):
    """A count in each of the two checkpoints; a baseline has none of the tuned."""

    base = integer().or_none()
    tuned = integer().or_none()

    def side(self, name: str) -> int | None:
        """Return the count of ``base`` or ``tuned``."""
        return self.base if name == "base" else self.tuned

    @property
    def most(self) -> int:
        """The larger one."""
        return max(self.base or 0, self.tuned or 0)


class SeenAndUnseen(View):
    """A count of rows whose ids the probe windows hold, and of the others."""

    seen = integer()
    unseen = integer()

    @property
    def both(self) -> int:
        """The count of all rows."""
        return self.seen + self.unseen


class SeenAndUnseenChange(View):
    """How far rows moved whose ids the probe windows hold, and how far the others did; null where not finite."""

    seen = number().or_none()
    unseen = number().or_none()


class WeightClass(View):
    """The tensors of one class, counted."""

    tensors = integer().or_none()
    changed = integer().or_none()
    relative_change = number().or_none()
    all_zero_tensors = part(BothCounts).or_none()
    zeros = part(BothCounts).or_none()
    nonfinite = part(BothCounts).or_none()


class LedgerRow(View):
    """One tensor of the weights ledger."""

    name = text()
    kind = text("class")
    layer = integer().or_none()
    expert = integer().or_none()
    relative_change = number().or_none()
    identical = flag().or_none()
    recast = flag().or_none()
    rounded = flag().or_none()


class NamedRow(View):
    """One row of the vocabulary that is named: its id, and the token where it is known."""

    id = integer()
    name = text().or_none()
    outlying = flag()
    was = integer().or_none()


class NamedExtra(View):
    """A row of one checkpoint alone that is named: its id, and the token where it is known."""

    id = integer()
    name = text().or_none()


class ExtraRows(View):
    """The rows that one checkpoint alone has."""

    side = text()
    first = integer()
    rows = integer()
    zero = integer()
    nonfinite = integer()
    far_longer = integer()
    named = parts(NamedExtra)

    @property
    def odd(self) -> dict[str, int]:
        """How many rows stand under each finding."""
        return {"zero": self.zero, "nonfinite": self.nonfinite, "far_longer": self.far_longer}


class VocabularyRows(View):
    """How the rows of the embedding or of the head changed."""

    rows = integer()
    seen = integer()
    changed = part(SeenAndUnseen)
    median_change = part(SeenAndUnseenChange)
    largest_change = part(SeenAndUnseenChange)
    outlying = part(SeenAndUnseen)
    far_longer = integer()
    permuted = integer()
    extra = part(ExtraRows).or_none()
    named = parts(NamedRow)


class UnreplayedTensor(View):
    """A tensor that no probe token passes and that is named."""

    tensor = text()


class UnreplayedRow(View):
    """The tensors of one part that no probe token passes, counted by finding."""

    name = text("part")
    tensors = part(BothCounts)
    nonfinite = integer()
    zeroed = integer()
    replaced = integer()
    missing = integer()
    added = integer()
    reshaped = integer()
    named = parts(UnreplayedTensor)

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors stand under each finding, worst first."""
        return {
            "nonfinite": self.nonfinite,
            "zeroed": self.zeroed,
            "replaced": self.replaced,
            "missing": self.missing,
            "added": self.added,
            "reshaped": self.reshaped,
        }


class WeightsView(View):
    """The weights ledger."""

    classes = named(WeightClass).or_none()
    tensors = parts(LedgerRow).or_none()
    unreplayed = parts(UnreplayedRow).or_none()


class VocabularyView(View):
    """Embedding and head, row by row; null where a checkpoint has no such rows of its own."""

    embedding = part(VocabularyRows).or_none()
    head = part(VocabularyRows).or_none()

    @property
    def compared(self) -> dict[str, VocabularyRows]:
        """What was compared, by name."""
        found = {"embedding": self.embedding, "head": self.head}
        return {name: rows for name, rows in found.items() if rows is not None}


class Breach(View):
    """An expert that is no longer the expert of its index."""

    layer = integer().or_none()
    kind = text()
    detail = text()


class Clones(View):
    """Groups of experts that hold the same values, in each checkpoint."""

    base = groups().or_none()
    tuned = groups().or_none()


class InitLike(View):
    """Experts that look untrained, in each checkpoint."""

    base = integers().or_none()
    tuned = integers().or_none()


class IdentityLayer(View):
    """The experts of one layer, held against those of the base."""

    layer = integer()
    match = integers().or_none()
    clones = part(Clones)
    init_like = part(InitLike)


class Identity(View):
    """Is expert i still expert i, and are both checkpoints the same?"""

    layers = parts(IdentityLayer).or_none()

    identical_checkpoints = flag().or_none()
    identical_replayed = flag().or_none()
    breaches = parts(Breach).or_none()
