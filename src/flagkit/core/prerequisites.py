"""Prerequisites in turn: for flags that rest on so many others that nested calls would not do.

A flag's code calls its prerequisites' code. Where flags rest on flags in long chains that would end
the stack, and where they share prerequisites, it would ask the same flag again and again, twice as
often with each level. Here each flag is asked at most once, and nothing is nested.
"""

from msgspec import Struct

from flagkit.core.contexts import ContextLike, attributes_of
from flagkit.core.evaluation import Outcome
from flagkit.core.templates import Evaluator

CALLS_MAX = 64
"""A flag that may take more calls of other flags' code than this is evaluated in turn."""


class Step(Struct, frozen=True, eq=False):
    """A flag without its prerequisites, the steps that these are, and what it answers without."""

    answer: Outcome | Evaluator
    off: Outcome
    prerequisites: "tuple[tuple[Step, frozenset[str]], ...]" = ()

    def __call__(self, context: ContextLike) -> Outcome:
        """Return the outcome for a context, as any evaluator does."""
        return self.outcome(context, {})

    def outcome(self, context: ContextLike, outcomes: "dict[Step, Outcome]") -> Outcome:
        """Return the outcome for a context, and add it to the outcomes that are known for it.

        Who asks many flags for one context passes the same `outcomes` each time. Each step of a
        chain is then taken once, and not once for each flag that depends on it.
        """
        attributes = attributes_of(context)
        waiting = [] if self in outcomes else [(self, 0)]
        while waiting:
            step, place = waiting.pop()
            for at in range(place, len(step.prerequisites)):
                prerequisite, variants = step.prerequisites[at]
                found = outcomes.get(prerequisite)
                if found is None:
                    waiting += [(step, at), (prerequisite, 0)]
                    break
                if found.variant not in variants:
                    outcomes[step] = step.off
                    break
            else:
                answer = step.answer
                outcomes[step] = answer if isinstance(answer, Outcome) else answer(attributes)
        return outcomes[self]
