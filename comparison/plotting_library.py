"""The plotting library that the page carries: plotly.js, changed so that a browser starts it in a fifth of the time.

Another version of it may read otherwise than what is looked for here. It is then left as it comes, whole and slow.
"""

import functools
import re

# It is `(function(root, factory) {...} (typeof self ..., () => {...}));`. Unless the last function is in parentheses, a
# browser reads it twice: to find its end, and when it is called.
FACTORY = re.compile(r"(\} \(typeof self [^,\n]*, )(\(\) => \{\n.*\n\})(\)\);\s*)\Z", re.DOTALL)
# Its last module is `var P=core();P.register([bar(),box(),...]);module.exports=P`: every kind of trace but `scatter`,
# which is in the core, with what they need for maps, three dimensions and so on.
OTHER_KINDS = re.compile(r"(var (\w+)=\w+\(\);)\2\.register\(\[(?:\w+\(\),?)+\]\);(?=\w+\.exports=\2\}\))")
# With one letter beyond Latin-1, a browser takes the whole text at two bytes a letter.
NOT_ASCII = re.compile(r"[\x80-\uffff]")


@functools.cache
def plotting_library(all_kinds: bool) -> str:
    """With all kinds of traces, or with `scatter` alone."""
    from plotly.offline import get_plotlyjs  # only this function needs it

    library = FACTORY.sub(r"\1(\2)\3", get_plotlyjs())
    library = NOT_ASCII.sub(lambda letter: f"\\u{ord(letter[0]):04x}", library)
    return library if all_kinds else OTHER_KINDS.sub(r"\1", library)
