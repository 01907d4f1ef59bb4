"""German and English from Unicode's CLDR, the data behind the dates and units of most programs.

Sentences are generated, not written by people: dates, distances in time, amounts of units and of
money, and lists of countries and languages, by the rules of Babel for either language. There are
about 1,400 names of things; what has to be learned is which word goes where, in which form.
"""

import datetime
import random
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.tasks.text.pipeline import Rules
from experiments.tasks.text.sources.source import Raw

LANGUAGES = ("de", "en")
DRAWS = 24_000
SEED = 1
UNITS = ("length-kilometer", "length-meter", "length-mile", "mass-kilogram", "mass-gram",
         "mass-pound", "volume-liter", "volume-cup", "duration-hour", "duration-minute",
         "duration-day", "duration-week", "duration-month", "duration-year", "area-hectare",
         "area-square-kilometer", "energy-kilojoule", "energy-kilowatt-hour", "power-watt",
         "temperature-celsius", "speed-kilometer-per-hour", "digital-megabyte",
         "digital-gigabyte", "angle-degree", "pressure-hectopascal")  # fmt: skip
CURRENCIES = ("EUR", "USD", "GBP", "JPY", "CHF", "SEK", "PLN", "CZK", "CAD", "AUD", "INR", "BRL",
              "CNY", "TRY", "MXN", "NOK", "DKK", "HUF", "ZAR", "KRW")  # fmt: skip
# Similar sentences are the point of generated ones: no near duplicates are looked for.
RULES = Rules(min_letters=0.0, held_out=0.04, near_duplicates=None)


def versions(root: Path) -> dict[str, str]:
    """Of the package whose data these are."""
    return {"babel": version("babel")}


def read(root: Path, languages: tuple[str, ...]) -> Raw:
    """The pairs, drawn by `SEED`: the same for every version of Python."""
    draw = _generate(random.Random(SEED))
    examples = (tuple(pair[language] for language in languages) for pair in draw)
    return Raw("Unicode-3.0 (CLDR), BSD-3-Clause (Babel)", examples, rules=RULES,
               versions=versions(root))  # fmt: skip


def _generate(random_: random.Random) -> Iterator[dict[str, str]]:
    from babel import Locale

    locales = [Locale(language) for language in LANGUAGES]
    names = {kind: _shared_names(locales, kind) for kind in ("territories", "languages")}
    makers = (_date, _distance, _unit, _money, _list, _list)

    def choose(items: Any) -> Any:
        return items[int(random_.random() * len(items))]  # `choice` may change with Python

    for _ in range(DRAWS):
        say = choose(makers)(choose, names)
        yield {locale.language: say(locale) for locale in locales}


def _shared_names(locales: list[Any], kind: str) -> list[str]:
    """The codes that have a name in all languages, apart from continents and the like."""
    tables = [getattr(locale, kind) for locale in locales]
    return sorted(
        code for code in set.intersection(*map(set, tables))
        if code.isalpha() and len(code) <= 3 and all(table[code] for table in tables)
    )  # fmt: skip


Say = Callable[[Any], str]


def _date(choose: Callable, names: dict[str, list[str]]) -> Say:
    from babel.dates import format_date

    day = datetime.date(1950, 1, 1) + datetime.timedelta(days=choose(range(31_000)))
    style = choose(("full", "long"))
    return lambda locale: format_date(day, style, locale=locale)


def _distance(choose: Callable, names: dict[str, list[str]]) -> Say:
    from babel.dates import format_timedelta

    unit = choose(("second", "minute", "hour", "day", "week", "month", "year"))
    seconds = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800,
               "month": 2592000, "year": 31536000}[unit]  # fmt: skip
    distance = choose((-1, 1)) * choose(range(1, 60)) * seconds
    return lambda locale: format_timedelta(
        distance, granularity=unit, threshold=1e9, add_direction=True, locale=locale
    )


def _number(choose: Callable) -> float:
    return choose((choose(range(1, 20)), choose(range(1, 1000)), choose(range(10, 1000)) / 10))


def _unit(choose: Callable, names: dict[str, list[str]]) -> Say:
    from babel.units import format_unit

    value, unit = _number(choose), choose(UNITS)
    return lambda locale: format_unit(value, unit, length="long", locale=locale)


def _money(choose: Callable, names: dict[str, list[str]]) -> Say:
    from babel.numbers import format_currency

    value, currency = choose(range(1, 1000)), choose(CURRENCIES)
    return lambda locale: format_currency(
        value, currency, locale=locale, format_type="name", currency_digits=False
    )


def _list(choose: Callable, names: dict[str, list[str]]) -> Say:
    from babel.lists import format_list

    kind = choose(("territories", "languages"))
    codes = [choose(names[kind]) for _ in range(choose((1, 2, 2, 3)))]
    style = choose(("standard", "or"))
    return lambda locale: format_list([getattr(locale, kind)[c] for c in codes], style, locale)
