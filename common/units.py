"""Numbers in words and units, as every report prints them."""

Units = tuple[tuple[int, str], ...]
COUNTS: Units = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"), (1, ""))
BYTES: Units = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B"))


def number(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


def short(count: int | None) -> str:
    """Four digits and a unit, such as `124.4M`; numbers below 1,000 as they are."""
    if count is None:
        return "n/a"
    scale, unit = unit_of(count)
    return f"{count / scale:#.4g}{unit}" if unit else str(count)


def unit_of(count: float, digits: int = 4) -> tuple[int, str]:
    """(1,000,000, `M`) for 1.5e6. What rounds to 1,000 of a unit in so many digits is 1 of the next."""
    return _unit_of(count, COUNTS, digits)


def bytes_text(size: float) -> str:
    """Four digits in decimal units, such as `465.9 GB`; the largest unit has as many as it needs."""
    scale, unit = _unit_of(size, BYTES, digits=4)
    if scale == 1 or size >= 999.95 * BYTES[0][0]:
        return f"{size / scale:,.0f} {unit}"
    return f"{size / scale:#.4g} {unit}"


def _unit_of(value: float, units: Units, digits: int) -> tuple[int, str]:
    nearly = 1 - 0.5 * 10**-digits
    return next(((scale, unit) for scale, unit in units if value >= nearly * scale), units[-1])


def flops_unit(flops_per_second: float) -> tuple[float, str]:
    """(1e12, `TFLOP/s`) for the peak of a GPU; a CPU's reads better in GFLOP/s."""
    return (1e12, "TFLOP/s") if flops_per_second >= 1e13 else (1e9, "GFLOP/s")
