"""A simulated ads log whose best possible predictor is known, with no download.

Every impression draws its labels from probabilities that are functions of what its row shows:

    P(click | row)              = sigmoid(f_click(row))
    P(converts | click, row)    = sigmoid(f_conversion(row))
    P(converted within h | row) = P(click | row) · P(converts | click, row) · F(h),   F(h) = 1 − exp(−(h/λ)^k)

    f(row) = base + trend(day) + Σ_field effect[id] + drift[day, campaign]
           + affinity[interest, advertiser] + format[device, creative_size] + numeric terms

There is no hidden taste of a user or a row, and a missing value has an effect of its own, so the columns
`bayes_click` and `bayes_conversion` are exactly the Bernoulli probabilities: no model can have a lower
expected log loss, and the distance to them is the model's whole shortfall. What users repeat is what they
look like (country, age band, interest), which is what makes rows of one user alike.

Effects are drawn from `seed` and the constants below alone: a log of more users or days of the same seed
comes from the same world. Ids are Zipf distributed: P(id of rank r) ∝ r^(−zipf). Delays are Weibull, the
usual family for conversion delays (Chapelle 2014, KDD, "Modeling delayed feedback in display advertising",
uses its k = 1), and independent of the row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import expit

Floats = NDArray[np.float64]
Codes = NDArray[np.int16]  # an id's rank from 0; a field's `size` where the value is missing

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
TIMESTAMP = pa.timestamp("us")


@dataclass(frozen=True)
class Field:
    """A categorical column: its ids, how unevenly they appear, and how strongly they move each label.

    `click` and `conversion` are the standard deviations of the effects, in log-odds, over impressions.
    """

    names: tuple[str, ...]
    zipf: float
    buckets: int
    click: float
    conversion: float
    missing: float = 0.0

    @property
    def size(self) -> int:
        """The number of ids, which is also the code of a missing value."""
        return len(self.names)

    def shares(self) -> Floats:
        """How often each id appears where the field is not missing, (ids,), summing to 1."""
        weight = np.arange(1, self.size + 1) ** -self.zipf
        return np.asarray(weight / weight.sum(), dtype=np.float64)


def _ids(prefix: str, size: int, digits: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{number:0{digits}d}" for number in range(size))


DEVICES = ("phone-android", "phone-ios", "desktop", "tablet", "tv", "console")
SIZES = ("300x250", "728x90", "320x50", "160x600", "300x600", "970x250", "336x280", "468x60")
AGE_BANDS = ("25-34", "35-44", "18-24", "45-54", "55-64", "65+", "13-17")

# Strong effects sit in fields with few ids, which a private model can learn; the long tail carries less.
FIELDS: dict[str, Field] = {
    "campaign": Field(_ids("c", 500, 3), zipf=0.9, buckets=512, click=0.20, conversion=0.25),
    "advertiser": Field(_ids("a", 80, 2), zipf=0.9, buckets=512, click=0.40, conversion=0.45),
    "site": Field(_ids("s", 2000, 4), zipf=1.0, buckets=2048, click=0.25, conversion=0.15, missing=0.05),
    "device": Field(DEVICES, zipf=0.8, buckets=64, click=0.45, conversion=0.45),
    "country": Field(_ids("g", 30, 2), zipf=1.1, buckets=256, click=0.10, conversion=0.20, missing=0.03),
    "hour": Field(_ids("h", 24, 2), zipf=0.0, buckets=256, click=0.15, conversion=0.10),
    "creative_size": Field(SIZES, zipf=0.7, buckets=64, click=0.25, conversion=0.10),
    "age_band": Field(AGE_BANDS, zipf=0.4, buckets=64, click=0.15, conversion=0.25, missing=0.06),
    "interest": Field(_ids("i", 40, 2), zipf=0.6, buckets=256, click=0.40, conversion=0.50, missing=0.04),
}
OF_A_USER = ("country", "age_band", "interest")

# Public ranges; values outside, in the tail of the price, are for the reader of the log to clip.
RANGES: dict[str, tuple[int, int]] = {
    "bid_usd": (0, 50),
    "price_usd": (0, 500),
    "ad_position": (1, 10),
    "user_recency_hours": (0, 168),
}

BASE_CLICK = -2.86
BASE_CONVERSION = -0.25
TREND_CLICK = 0.10  # of ln(1 + day): clicks rise, ever more slowly
DRIFT_PER_DAY = 0.06  # step of each campaign's random walk
AFFINITY = {"click": 0.40, "conversion": 0.45}  # std of interest × advertiser
AFFINITY_RANK = 3
FORMAT = {"click": 0.35, "conversion": 0.0}  # std of device × creative_size

BID_MEDIAN_USD, BID_SIGMA = 2.0, 0.8
PRICE_MEDIAN_USD, PRICE_SIGMA = 25.0, 1.2
IMPRESSIONS_SHAPE = 0.6  # of the gamma over users; smaller is a heavier tail
DELAY_SHAPE = 0.7
DELAY_MEDIAN_HOURS = 4.0


def delay_cdf(hours: float) -> float:
    """Returns the probability that a conversion, if there is one, comes within `hours` of the impression.

    F(h) = 1 − exp(−(h/λ)^k) with k = DELAY_SHAPE and λ such that F(DELAY_MEDIAN_HOURS) = 1/2.

    >>> round(delay_cdf(4.0), 12), round(delay_cdf(24.0), 3)
    (0.5, 0.912)
    """
    return 1.0 - math.exp2(-math.pow(hours / DELAY_MEDIAN_HOURS, DELAY_SHAPE))


def simulate(
    users: int,
    *,
    seed: int,
    days: int = 7,
    impressions_per_user: float = 4.0,
    start: datetime = datetime(2026, 11, 9),
) -> pa.Table:
    """Returns a log of impressions in order of time, one row each, about `users · impressions_per_user` rows.

    Every user appears: one user's impressions are 1 + a negative binomial of mean `impressions_per_user − 1`.
    The log is read after every conversion has arrived, so a null `converted_at` means there is none.

    Columns: `user_id`; `shown_at`, `converted_at` (timestamps in μs, no time zone); the strings of `FIELDS`;
    the numbers of `RANGES` (`user_recency_hours`, since the user's previous impression, null at the first);
    `is_click` in {0, 1}; `bayes_click` = P(click | row); `bayes_conversion` = P(converted within 24 h | row).

    >>> log = simulate(100, seed=1)
    >>> len(log["user_id"].unique())
    100
    """
    _check(users, seed, days, impressions_per_user, start)
    rng, of_click, of_conversion = (np.random.default_rng([seed, stream]) for stream in range(3))

    user, shown_us = _impressions(rng, users, days, impressions_per_user)
    codes = _codes(rng, users, user, shown_us)
    numbers = _numbers(rng, user, shown_us)
    day = shown_us // DAY_US

    click_logit = BASE_CLICK + TREND_CLICK * np.log1p(day) + _effects(of_click, "click", days).of(codes, day)
    conversion_logit = BASE_CONVERSION + _effects(of_conversion, "conversion", days).of(codes, day)
    click = expit(click_logit + _numeric_click(numbers))
    conversion = expit(conversion_logit + _numeric_conversion(numbers))

    is_click = rng.random(len(user)) < click
    converts = is_click & (rng.random(len(user)) < conversion)
    shown_us = shown_us + int(np.datetime64(start, "us").astype(np.int64))
    converted_us = shown_us + _delays_us(rng, len(user))
    columns: dict[str, Any] = {"user_id": _user_ids(user), "shown_at": pa.array(shown_us, TIMESTAMP)}
    columns |= {name: _strings(codes[name], FIELDS[name].names) for name in FIELDS}
    columns |= {name: pa.array(numbers[name], from_pandas=True) for name in RANGES}
    columns["is_click"] = pa.array(is_click.astype(np.int8))
    columns["converted_at"] = pa.array(converted_us, TIMESTAMP, mask=~converts)
    columns["bayes_click"] = pa.array(click)
    columns["bayes_conversion"] = pa.array(click * conversion * delay_cdf(24.0))
    return pa.table(columns)


LABELS = {"conversion": '{time = "converted_at", within_hours = 24}', "click": '"is_click"'}


def schema_toml(users: int, *, public: bool = False, tasks: tuple[str, ...] = ("conversion",)) -> str:
    """Returns the public facts of `simulate(users, ...)`, as the TOML that `privads.logs.schema` reads.

    tasks: which of the labels `conversion` (within 24 hours) and `click` a model is to learn.
    `[reference]` names the column that holds another predictor's probability of a label, shown beside the
    model in reports. Fields with few ids have several times as many buckets, so that few share one.
    """
    numeric = "\n".join(f"{name} = {{range = [{low}, {high}]}}" for name, (low, high) in RANGES.items())
    categorical = "\n".join(f"{name} = {{buckets = {field.buckets}}}" for name, field in FIELDS.items())
    labels = "\n".join(f"{task} = {LABELS[task]}" for task in tasks)
    reference = "\n".join(f'{task} = "bayes_{task}"' for task in tasks)
    return f"""\
dataset = "simulated-ads"
population = {users}
unit = ["user_id"]
time = "shown_at"
public = {str(public).lower()}
reference_name = "Bayes optimum"

[labels]
{labels}

[reference]
{reference}

[numeric]
{numeric}

[categorical]
{categorical}
"""


@dataclass(frozen=True)
class _Effects:
    """What moves one label, in log-odds; the last entry of a field's effects is that of a missing value."""

    fields: dict[str, Floats]  # (ids + 1,) each
    drift: Floats  # (days, campaigns)
    affinity: Floats  # (interests + 1, advertisers)
    format: Floats  # (devices, creative sizes)

    def of(self, codes: dict[str, Codes], day: NDArray[np.int64]) -> Floats:
        """The log-odds of each row from its categorical values and its day, (rows,)."""
        total = self.drift[day, codes["campaign"]]
        total += self.affinity[codes["interest"], codes["advertiser"]]
        total += self.format[codes["device"], codes["creative_size"]]
        for name, effect in self.fields.items():
            total += effect[codes[name]]
        return np.asarray(total)


def _effects(world: np.random.Generator, label: str, days: int) -> _Effects:
    fields = {name: _field_effects(world, name, getattr(field, label)) for name, field in FIELDS.items()}
    interests, advertisers = _shares("interest"), _shares("advertiser")[:-1]
    left = world.standard_normal((len(interests), AFFINITY_RANK))
    right = world.standard_normal((len(advertisers), AFFINITY_RANK))
    left[-1] = interests[:-1] @ left[:-1] / interests[:-1].sum()  # a missing interest likes what all like
    table = world.standard_normal((FIELDS["device"].size, FIELDS["creative_size"].size))
    devices, sizes = _shares("device")[:-1], _shares("creative_size")[:-1]
    steps = world.standard_normal((days, FIELDS["campaign"].size))  # last, so that more days append
    return _Effects(
        fields=fields,
        drift=DRIFT_PER_DAY * np.cumsum(steps, axis=0),
        affinity=_interaction(left @ right.T, interests, advertisers, AFFINITY[label]),
        format=_interaction(table, devices, sizes, FORMAT[label]),
    )


def _shares(name: str) -> Floats:
    """The shares of a field's ids among impressions, then that of a missing value, (ids + 1,)."""
    field = FIELDS[name]
    shares = field.shares()
    if name == "advertiser":
        shares = np.bincount(_advertiser_of_campaign(), FIELDS["campaign"].shares()).astype(np.float64)
    if name == "hour":
        shares = _hour_shares()
    return np.append(shares * (1.0 - field.missing), field.missing)


def _field_effects(world: np.random.Generator, name: str, std: float) -> Floats:
    """Normal effects, moved and scaled to mean 0 and `std` over impressions: rates hardly vary by seed."""
    shares = _shares(name)
    effect = world.standard_normal(len(shares))
    effect -= shares @ effect
    return np.asarray(std * effect / math.sqrt(shares @ effect**2))


def _interaction(table: Floats, rows: Floats, columns: Floats, std: float) -> Floats:
    """A table without row or column effects, of `std` over impressions: what no sum of fields can express."""
    table = table - rows @ table
    table = table - (table @ columns)[:, None]
    return np.asarray(std * table / math.sqrt(rows @ table**2 @ columns))


def _advertiser_of_campaign() -> Codes:
    return (np.arange(FIELDS["campaign"].size) % FIELDS["advertiser"].size).astype(np.int16)


def _hour_shares() -> Floats:
    """A day's wave of traffic, lowest at 3 in the morning and highest at 15."""
    weight = 1.0 + 0.7 * np.sin(2.0 * np.pi * (np.arange(24) - 9) / 24.0)
    return np.asarray(weight / weight.sum(), dtype=np.float64)


def _impressions(
    rng: np.random.Generator, users: int, days: int, mean: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whose each impression is and when it was shown, in μs since the start; in order of time, (rows,)."""
    appetite = rng.gamma(IMPRESSIONS_SHAPE, (mean - 1.0) / IMPRESSIONS_SHAPE, users)
    user = np.repeat(np.arange(users), 1 + rng.poisson(appetite))
    hour = rng.choice(24, len(user), p=_hour_shares())
    within = rng.integers(0, HOUR_US, len(user))
    shown_us = rng.integers(0, days, len(user)) * DAY_US + hour * HOUR_US + within
    order = np.argsort(shown_us, kind="stable")
    return user[order], shown_us[order]


def _codes(
    rng: np.random.Generator, users: int, user: NDArray[np.int64], shown_us: NDArray[np.int64]
) -> dict[str, Codes]:
    """The id of every field in every row, (rows,) each."""
    rows = len(user)
    codes = {name: _draw(rng, FIELDS[name], users)[user] for name in OF_A_USER}
    for name in ("campaign", "site", "device", "creative_size"):
        codes[name] = _draw(rng, FIELDS[name], rows)
    codes["advertiser"] = _advertiser_of_campaign()[codes["campaign"]]
    codes["hour"] = (shown_us // HOUR_US % 24).astype(np.int16)
    return codes


def _draw(rng: np.random.Generator, field: Field, rows: int) -> Codes:
    ids = rng.choice(field.size, rows, p=field.shares()).astype(np.int16)
    ids[rng.random(rows) < field.missing] = field.size
    return ids


def _numbers(rng: np.random.Generator, user: NDArray[np.int64], shown_us: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The numeric columns, (rows,) each, NaN where missing. High bids buy low positions.

    The price is not missing at random: merchants hide high ones more often.
    """
    rows = len(user)
    bid = np.minimum(BID_MEDIAN_USD * np.exp(BID_SIGMA * rng.standard_normal(rows)), RANGES["bid_usd"][1])
    position = np.ceil(rng.exponential(4.0 * (bid / BID_MEDIAN_USD) ** -0.3)).clip(1, 10).astype(np.int16)
    price = PRICE_MEDIAN_USD * np.exp(PRICE_SIGMA * rng.standard_normal(rows))
    hidden = rng.random(rows) < np.where(price > 4.0 * PRICE_MEDIAN_USD, 0.25, 0.03)
    bid[rng.random(rows) < 0.03] = np.nan
    price[hidden] = np.nan
    return {
        "bid_usd": np.round(bid, 3),
        "price_usd": np.round(price, 2),
        "ad_position": position,
        "user_recency_hours": _recency_hours(user, shown_us),
    }


def _recency_hours(user: NDArray[np.int64], shown_us: NDArray[np.int64]) -> Floats:
    """Hours since the same user's previous impression, NaN at the first; rows are in order of time."""
    by_user = np.argsort(user, kind="stable")
    same = np.diff(user[by_user]) == 0
    recency = np.full(len(user), np.nan)
    recency[by_user[1:]] = np.where(same, np.diff(shown_us[by_user]) / HOUR_US, np.nan)
    return np.round(recency, 2)


def _numeric_click(numbers: dict[str, NDArray[Any]]) -> Floats:
    """Log-odds of a click from the numbers: position above all, then the heat of a recent impression."""
    position = 1.0 - np.log(numbers["ad_position"].astype(np.float64))
    heat = np.nan_to_num(1.0 - np.log1p(numbers["user_recency_hours"]) / 3.0, nan=-0.3)
    return np.asarray(0.60 * position + 0.20 * heat)


def _numeric_conversion(numbers: dict[str, NDArray[Any]]) -> Floats:
    """Log-odds of a conversion after a click: dear things sell less, a high bid knows something."""
    price = np.log(np.maximum(numbers["price_usd"], 0.01) / PRICE_MEDIAN_USD) / PRICE_SIGMA
    bid = np.log(np.maximum(numbers["bid_usd"], 0.001) / BID_MEDIAN_USD) / BID_SIGMA
    return np.asarray(-0.45 * np.nan_to_num(price, nan=1.0) + 0.25 * np.nan_to_num(bid, nan=0.0))


def _delays_us(rng: np.random.Generator, rows: int) -> NDArray[np.int64]:
    """Weibull delays from impression to conversion, at least 1 μs: conversions come after the impression."""
    scale_hours = DELAY_MEDIAN_HOURS / math.log(2.0) ** (1.0 / DELAY_SHAPE)
    return np.asarray((scale_hours * rng.weibull(DELAY_SHAPE, rows) * HOUR_US).astype(np.int64) + 1)


def _user_ids(user: NDArray[np.int64]) -> Any:
    digits = pc.utf8_lpad(pa.array(user).cast(pa.string()), 6, "0")
    return pc.binary_join_element_wise("u", digits, "")


def _strings(codes: Codes, names: tuple[str, ...]) -> Any:
    indices = pa.array(codes, mask=codes == len(names))
    return pa.DictionaryArray.from_arrays(indices, pa.array(names)).cast(pa.string())


def _check(users: int, seed: int, days: int, impressions_per_user: float, start: datetime) -> None:
    if users < 1:
        raise ValueError(f"users must be at least 1, got {users}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if days < 1:
        raise ValueError(f"days must be at least 1, got {days}")
    if not (math.isfinite(impressions_per_user) and impressions_per_user >= 1.0):
        raise ValueError(f"impressions_per_user must be at least 1, got {impressions_per_user}")
    if start.tzinfo is not None or start.time() != time():
        raise ValueError(f"start must be a midnight without a time zone, got {start.isoformat()}")
