"""Rewards of what a model has written: functions of the config file, which the key `rewards` names with their weights.

    def right(prompt: str, completion: str, answer: str) -> float:
        return float(completion.strip() == answer)

    rewards = {"right": 1.0}

What such a function is given: what was asked, without the template's markers (of several turns the last); what the
model wrote, without the end of its turn; and the answer beside the prompt, empty where there is none.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from common.errors import UserError, did_you_mean
from configurator import Configuration
from data.questions import Question


@dataclasses.dataclass(frozen=True)
class Reward:
    """A function of the config file, by its name, and how much it counts."""

    name: str
    weight: float
    function: Callable[..., float]

    def of(self, question: Question, completion: str) -> float:
        """Without its weight. Raises UserError, with the prompt, where the function raises anything, or returns what is
        no finite number."""
        try:
            found = float(self.function(question.prompt, completion, question.answer))
        except (Exception, SystemExit) as error:  # whatever a stranger's function may raise
            reason = f"raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            if math.isfinite(found):
                return found
            reason = f"is {found}, no finite number"
        raise UserError(f"the reward {self.name} {reason}; prompt {question.prompt!r}, completion {completion!r}")


def rewards_of(configuration: Configuration) -> tuple[Reward, ...]:
    """Those that the key names. Raises UserError for one that the config file does not have."""
    functions, found = configuration.functions, []
    for name, weight in (configuration.run.rewards or {}).items():
        if name not in functions:
            of = configuration.config_file or "no config file"
            raise UserError(
                f"rewards: {name!r}{did_you_mean(str(name), functions)} is no function of {of}, which has "
                f"{', '.join(functions) or 'none'}"
            )
        found.append(Reward(name, float(weight), functions[name]))
    return tuple(found)


def score(rewards: Sequence[Reward], question: Question, completion: str) -> dict[str, float]:
    """What each says of a completion, by its name, without weights. Raises UserError."""
    return {reward.name: reward.of(question, completion) for reward in rewards}
