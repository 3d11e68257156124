"""How often an epoch holds each crop, so that every class comes equally often and nothing is copied on disk."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Balance:
    """Every class of one label gets ``per_class`` crops an epoch."""

    label: str
    per_class: int
    class_counts: dict[str, int]  # class, as text in lower case -> its crops in the training split

    def copies(self, label: object, rank: int | None, epoch: int) -> int:
        """How often an epoch holds the crop with this rank in its class; over a class the sum is ``per_class``.

        What does not divide goes to the next ranks in each epoch, so that over epochs all crops are seen alike.
        """
        if label is None or rank is None:
            return 0
        num_crops = self.class_counts[str(label).lower()]
        each, rest = divmod(self.per_class, num_crops)
        return each + ((rank - epoch * rest) % num_crops < rest)
