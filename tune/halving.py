"""Which trainings a confirmation makes next: sequential halving, then the winner against the base.

The challengers and the base get 2 fresh seeds each, the better half of the challengers 4 in all, the better half of
these 8, and so on (Karnin, Koren and Somekh, ICML 2013); left out is also who lies FAR_BEHIND. Who remains is trained
beside the base, one seed after the other, until the difference is decided or the most seeds are reached. All share
their seeds. What comes next follows from the accuracies so far and nothing else, so that a confirmation can stop at
any time and go on later.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, variance

from tune.evidence import ALPHA, Difference, difference, judge

FIRST_SEEDS = 2
FAR_BEHIND = 2.0
"""standard errors of a difference to the leader of a round, with the spread over seeds pooled over all: a fifth fewer
runs where configs differ clearly, and as good picks (benchmarks/confirm_quality.py)"""

Accs = Mapping[int, Sequence[float]]
"""test accuracies of each candidate, in the order of the seeds"""


@dataclass(frozen=True)
class Race:
    """Who is compared, and what counts as a difference."""

    challengers: Sequence[int]
    """best first, as the search has them; of two with the same mean the earlier one goes on"""
    base: int
    most_seeds: int
    practical: float
    """accuracies (0..1) closer than this are as good as each other"""
    resolution: float
    """1 / number of test images"""
    flops: Mapping[int, float] = field(default_factory=dict)
    """of a training of each, as far as known; without them all cost the same"""

    @property
    def alpha(self) -> float:
        """Of one challenger's difference to the base: all of them hold at once with probability 1 - ALPHA, so it does
        not matter that the winner was chosen by the same runs."""
        return ALPHA / max(1, len(self.challengers))

    def to_base(self, accs: Accs, challenger: int) -> Difference:
        return difference(accs[challenger], accs[self.base], self.resolution, self.alpha)

    def saves(self, challenger: int) -> float:
        """Operations per training that the challenger takes less than the base."""
        if challenger not in self.flops or self.base not in self.flops:
            return 0.0
        return self.flops[self.base] - self.flops[challenger]

    def decided(self, accs: Accs, challenger: int) -> bool:
        return judge(self.to_base(accs, challenger), self.practical, self.saves(challenger)) != "undecided"

    def rounds(self, accs: Accs) -> list[tuple[int, list[int]]]:
        """The rounds as far as the accuracies reach, the last one perhaps unfinished: seeds in all, and who gets them
        beside the base."""
        rounds = [(min(FIRST_SEEDS, self.most_seeds), list(self.challengers))]
        while True:
            seeds, left = rounds[-1]
            if len(left) < 2 or any(len(accs.get(number, ())) < seeds for number in [*left, self.base]):
                return rounds
            left = self._better_half(accs, left, seeds)
            rounds.append((min(2 * seeds if len(left) > 1 else seeds, self.most_seeds), left))

    def _better_half(self, accs: Accs, left: list[int], seeds: int) -> list[int]:
        means = {number: fmean(accs[number][:seeds]) for number in left}
        best_first = sorted(left, key=lambda number: -means[number])  # ties stay in the search's order
        kept = best_first[: (len(left) + 1) // 2]
        if seeds > 1:
            spread = fmean(variance(accs[number][:seeds]) for number in [*left, self.base])
            behind = FAR_BEHIND * math.sqrt(2 * spread / seeds)
            kept = [number for number in kept if means[best_first[0]] - means[number] <= behind]
        return [number for number in left if number in kept]

    def to_train(self, accs: Accs, pairs: int = 1) -> list[tuple[int, int]]:
        """(candidate, number of its seed) of what is trained next, in that order; empty when all is decided.

        Args:
            pairs: seeds that the winner and the base get before their difference is looked at again.
        """
        seeds, left = self.rounds(accs)[-1]
        if self._missing(accs, [*left, self.base], seeds):
            return self._missing(accs, [*left, self.base], seeds)
        if not left:
            return []
        winner = left[0]
        seeds = min(len(accs[winner]), len(accs[self.base]))
        if seeds >= self.most_seeds or self.decided(accs, winner):
            return []
        return self._missing(accs, [winner, self.base], min(seeds + pairs, self.most_seeds))

    def most_left(self, accs: Accs) -> int:
        """Trainings still to come, if the winner takes all its seeds and nobody lies far behind."""
        seeds, left = self.rounds(accs)[-1]
        trainings, among = len(self._missing(accs, [*left, self.base], seeds)), len(left)
        while among > 1:
            among = (among + 1) // 2
            more = min(2 * seeds if among > 1 else seeds, self.most_seeds) - seeds
            trainings, seeds = trainings + (among + 1) * more, seeds + more
        if not left or (len(left) == 1 and not self.to_train(accs)):
            return trainings
        had = [len(accs.get(number, ())) for number in (left[0], self.base)] if len(left) == 1 else [seeds, seeds]
        return trainings + sum(self.most_seeds - max(seeds, seeds_had) for seeds_had in had)

    def _missing(self, accs: Accs, candidates: Sequence[int], seeds: int) -> list[tuple[int, int]]:
        """Seed by seed, so that a break leaves candidates with as many seeds each."""
        return [
            (number, index) for index in range(seeds) for number in candidates if index >= len(accs.get(number, ()))
        ]
