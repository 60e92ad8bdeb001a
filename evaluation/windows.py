"""A text in the windows that a model can read, so that each of its tokens is predicted once."""

from collections.abc import Iterator, Sequence

from evaluation.scoring import Request


def windows(tokens: Sequence[int], first: int, block: int, stride: int) -> Iterator[Request]:
    """The text's tokens, `stride` at a time, each after what stands before it in the text, at most `block` tokens back
    from its window's last; the text itself follows the token `first`.

    With a stride of `block` windows are disjoint: the tokens at their beginnings have little before them, but each is
    read once. A shorter stride reads block / stride times as much, and every token but the first `block` then has
    block - stride before it or more. The last window of a text reaches back as far as the others.

        block 4, stride 4   first a b c   d e f g ─ the last: f g h i      block 4, stride 2   first a b c   b c d e ...
        predicted           a b c d       e f g h ─              j                             a b c d           e f
    """
    whole = [first, *tokens]
    done = 0
    while done < len(tokens):
        end = min(done + (stride if done else block), len(tokens))
        yield Request(tuple(whole[max(0, end - block) : done + 1]), tuple(tokens[done:end]))
        done = end
