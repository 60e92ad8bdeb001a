"""Where components of users' stated their costs before they had specs. Whoever imports it is told what took its place,
so that an older config file, or the `config.py` of an older run, says what to change."""

from common.errors import UserError

raise UserError(
    "a component states a spec in place of a ComponentCost: docs/extending.md, 'From a cost function to a spec', "
    "shows what to change"
)
