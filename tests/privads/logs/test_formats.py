"""The public formats: each reads a file of its documented layout, and the real one where it is at hand."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from privads.logs.encode import encode
from privads.logs.logs import Logs
from privads.logs.reader import read_batches
from privads.logs.schema import Schema, known_formats

DATA = Path(__file__).parents[4] / "shared" / "data"
PERSON = "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, 2174, 0, 40"
ADULT = f"{PERSON}, United-States"


def private_ad() -> pa.Table:
    """Three rows with the columns and types that users of CriteoPrivateAd report."""
    schema = Schema.load("criteo-private-ad")
    features = {name: pa.array([0.5, None, 7.0]) for name in schema.categorical}
    named = {
        "id": ["a", "b", "c"],
        "user_id": ["u1", "u1", "u2"],
        "display_order": pa.array([1, 2, 1], pa.int32()),
        "campaign_id": pa.array([10, 11, 10], pa.int64()),
        "publisher_id": pa.array([5, None, 6], pa.int32()),
        "is_clicked": pa.array([1, 0, 0], pa.int32()),
        "is_click_landed": pa.array([1.0, 0.0, 0.0]),
        "is_visit": pa.array([1, 0, 0], pa.int32()),
        "nb_sales": pa.array([2, None, None], pa.int64()),
        "click_delay_after_display_array": pa.array([[3], None, None], pa.list_(pa.int32())),
        "features_ctx_not_constrained_2": pa.array([[1, 2], [], None], pa.list_(pa.int64())),
    }
    return pa.table({**features, **named})


def tabs(*cells: object) -> str:
    return "\t".join(map(str, cells))


ATTRIBUTION = tabs(
    *("timestamp", "uid", "campaign", "conversion", "conversion_timestamp", "conversion_id", "attribution", "click"),
    *("click_pos", "click_nb", "cost", "cpo", "time_since_last_click", *(f"cat{number}" for number in range(1, 10))),
)
WEEK = 7 * 24 * 3600
SEARCH_TAIL = ("AGE", "DEVICE", -1, "GENDER", "BRAND", *("CATEGORY",) * 7, "COUNTRY", "PRODUCT", "TITLE", "PARTNER")
AVAZU = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,device_ip,"
)
AVAZU += "device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
SHOPPERS = "Administrative,Administrative_Duration,Informational,Informational_Duration,ProductRelated,"
SHOPPERS += "ProductRelated_Duration,BounceRates,ExitRates,PageValues,SpecialDay,Month,OperatingSystems,Browser,Region,"
SHOPPERS += "TrafficType,VisitorType,Weekend,Revenue"
WNS = "session_id,DateTime,user_id,product,campaign_id,webpage_id,product_category_1,product_category_2,user_group_id,"
WNS += "gender,age_level,user_depth,city_development_index,var_1,is_click"

# Per format: the file's name, its content of three rows, how many units, and the labels of the rows in their order.
MADE: dict[str, tuple[str, list[str] | pa.Table, int, dict[str, list[int]]]] = {
    "adult": ("adult.data", [
        ADULT + ", >50K", ADULT.replace(" State-gov", " ?") + ", <=50K", ADULT + ", <=50K.", ""
    ], 3, {"income_above_50k": [1, 0, 0]}),
    "avazu": ("train.csv", [
        AVAZU,
        *(f"{row},{row % 2},1410210{row},1005,0,a,b,c,d,e,f,g,ip{row // 2},m,1,0,1,320,50,1,0,35,-1,79"
          for row in range(3)),
    ], 2, {"click": [0, 1, 0]}),
    "criteo": ("train.tsv", [
        tabs(label, *range(12), "", *(f"c{field}" for field in range(25)), "") for label in (1, 0, 0)
    ], 3, {"click": [1, 0, 0]}),
    "criteo-attribution": ("criteo_attribution_dataset.tsv", [
        ATTRIBUTION,
        tabs(0, 7, 22589171, 1, WEEK, 3063962, 0, 1, 0, 7, 0.00001, 0.39, -1, *range(9)),
        tabs(2, 7, 22589171, 1, WEEK + 3, 3063962, 0, 0, 0, 7, 0.00001, 0.39, 2, *range(9)),
        tabs(3, 8, 884761, 0, -1, -1, 0, 0, -1, -1, 0.00001, 0.06, 423858, *range(9)),
    ], 2, {"click": [1, 0, 0], "conversion": [1, 0, 0]}),
    "criteo-private-ad": ("part-0.parquet", private_ad(), 2, {
        "click": [1, 0, 0], "landed_click": [1, 0, 0], "visit": [1, 0, 0],
    }),
    "criteo-sponsored-search": ("CriteoSearchData.tsv", [
        tabs(1, 12.5, 3600, 1596439471, 4, 12.5, *SEARCH_TAIL, "user-1"),
        tabs(0, -1.0, -1, 1596439472, 0, 0.0, *SEARCH_TAIL, "user-1"),
        tabs(0, -1.0, -1, 1596439473, -1, 0.0, *SEARCH_TAIL, "user-2"),
    ], 2, {"sale": [1, 0, 0]}),
    "hillstrom": ("hillstrom.csv", [
        "recency,history_segment,history,mens,womens,zip_code,newbie,channel,segment,visit,conversion,spend",
        '1,"7) $1,000 +",1200.5,0,1,Rural,1,Web,Womens E-Mail,1,1,29.99',
        "10,2) $100 - $200,142.44,1,0,Surburban,0,Phone,Mens E-Mail,1,0,0",
        "6,1) $0 - $100,30,1,0,Urban,0,Web,No E-Mail,0,0,0",
    ], 3, {"visit": [1, 1, 0], "conversion": [1, 0, 0]}),
    "online-shoppers": ("online_shoppers_intention.csv", [
        SHOPPERS,
        *(f"0,0,0,0,1,0,0.2,0.2,0,0,Feb,1,1,1,1,Returning_Visitor,FALSE,{bought}"
          for bought in ("TRUE", "FALSE", "FALSE")),
    ], 3, {"purchase": [1, 0, 0]}),
    "talkingdata": ("train.csv", [
        "ip,app,device,os,channel,click_time,attributed_time,is_attributed",
        "87540,12,1,13,497,2017-11-07 09:30:38,,0",
        "87540,12,1,13,497,2017-11-07 09:31:38,2017-11-07 10:31:38,1",
        "87541,12,1,13,497,2017-11-07 09:31:38,2017-11-09 10:31:38,1",
    ], 2, {"conversion": [0, 1, 0]}),
    "taobao": ("raw_sample.csv", [
        "user,time_stamp,adgroup_id,pid,nonclk,clk",
        "581738,1494137644,1,430548_1007,1,0",
        "581738,1494137645,2,430548_1007,0,1",
        "449818,1494638778,3,430548_1007,1,0",
    ], 2, {"click": [0, 1, 0]}),
    "wns-ad-click": ("train.csv", [
        WNS,
        "121580,2017-07-03 10:03,352186,H,82320,1734,1,146115,2,Male,1,3,4,1,0",
        "121581,2017-07-03 10:04,352186,H,82320,1734,1,,2,Male,1,3,4,1,1",
        "121582,2017-07-03 10:05,352187,H,82320,1734,1,,,,,,,0,0",
    ], 2, {"click": [0, 1, 0]}),
}  # fmt: skip


def test_every_known_format_has_a_case_here_and_a_row_on_its_page() -> None:
    page = (Path(__file__).parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")
    assert set(MADE) == set(known_formats())
    for name in known_formats():
        assert f"| `{name}` |" in page, name


@pytest.mark.parametrize("name", known_formats())
def test_a_file_of_the_documented_layout_reads(name: str, tmp_path: Path) -> None:
    file, content, units, expected = MADE[name]
    if isinstance(content, pa.Table):
        pq.write_table(content, tmp_path / file)
    else:
        (tmp_path / file).write_text("\n".join([*content, ""]), encoding="utf-8")
    logs = Logs(tmp_path / file, name)
    assert len(logs.units) == 3
    assert logs.units[-1] + 1 == units
    batch = logs.take(np.arange(3))
    assert {task: label.int().tolist() for task, label in batch.labels.items()} == expected
    assert all(known.all() for known in batch.observed.values())
    assert (batch.dense.abs() <= 1).all()


def values(name: str, tmp_path: Path) -> tuple[Schema, np.ndarray, np.ndarray]:
    """The schema, dense and ids of the made file, a row a line."""
    file, content, _, _ = MADE[name]
    (tmp_path / file).write_text("\n".join([*content, ""]), encoding="utf-8")
    schema = Schema.load(name)
    (batch,) = read_batches(tmp_path / file, schema, schema.columns)
    part = encode(batch, schema)
    return schema, part.dense, part.ids - np.array(schema.bucket_starts[:-1])


def test_the_code_for_missing_is_missing_in_numbers_and_categories(tmp_path: Path) -> None:
    schema, dense, _ = values("criteo-attribution", tmp_path)
    since = dense[:, list(schema.numeric).index("time_since_last_click")]
    assert since[0] == 0  # the middle: missing
    assert -1 < since[1] < since[2] < 1
    schema, _, ids = values("criteo-sponsored-search", tmp_path)
    assert (ids[:, list(schema.categorical).index("audience_id")] == 0).all()
    assert (ids[:, list(schema.categorical).index("product_brand")] > 0).all()
    schema, _, ids = values("adult", tmp_path)
    assert (ids[:, list(schema.categorical).index("workclass")] == 0).tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["criteo-attribution", "criteo-sponsored-search", "taobao", "wns-ad-click"])
def test_a_format_with_users_can_protect_them(name: str) -> None:
    Schema.load(name).check_history("user")


REAL: dict[str, tuple[str, int, int, dict[str, float]]] = {
    "adult": ("adult/adult.data.gz", 32_561, 32_561, {"income_above_50k": 0.241}),
    "avazu": ("avazu/avazu_random20k.csv.gz", 16_160, 0, {"click": 0.168}),
    "criteo": ("criteo-display/criteo_kaggle_first8000.tsv.gz", 8_000, 8_000, {"click": 0.216}),
    "hillstrom": ("hillstrom/hillstrom.csv.gz", 44_784, 44_784, {"visit": 0.147, "conversion": 0.009}),
    "online-shoppers": ("online-shoppers/online_shoppers_intention.csv.gz", 12_330, 12_330, {"purchase": 0.155}),
    "talkingdata": ("talkingdata-adtracking/clicks.csv.gz", 71_439, 0, {"conversion": 0.0024}),
    "wns-ad-click": ("wns-ad-click/wns_ad_click.csv.gz", 41_904, 29_063, {"click": 0.068}),
}
"""Per format the file, its rows, its units (0: as many as there are) and its positive rates, as its notes say."""


@pytest.mark.parametrize("name", REAL)
def test_the_real_file_has_the_rows_users_and_rates_that_its_notes_say(name: str) -> None:
    file, rows, units, rates = REAL[name]
    if not (DATA / file).is_file():
        pytest.skip(f"the real logs are not part of the repository: no ../shared/data/{file}")
    logs = Logs(DATA / file, name)
    assert len(logs.units) == rows
    assert units in (0, logs.units[-1] + 1)
    assert logs.schema.population == pytest.approx(logs.units[-1] + 1, rel=0.3)
    batch = logs.take(np.arange(rows))
    for task, rate in rates.items():
        assert float(batch.labels[task].mean()) == pytest.approx(rate, rel=0.06)
        assert batch.observed[task].all()
