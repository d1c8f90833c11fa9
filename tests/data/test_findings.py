from sagecache.data.findings import Finding, FindingList, count_by_code, fold, some


def test_findings_are_kept_in_order_counted_and_folded():
    log = FindingList("val")
    log.note("contents", "3 images")
    for i in range(5):
        log.warning("odd", "is odd", f"image {i}")
    log.error("missing", "is missing", "image 9", "Put it back")
    assert [f.level for f in log.found] == ["note", *["warning"] * 5, "error"]
    assert count_by_code(log.found) == {
        "error": {"missing": 1},
        "warning": {"odd": 5},
        "note": {"contents": 1},
    }
    folded = fold(log.found, most=2)
    assert [f.code for f in folded] == ["missing", "odd", "odd", "odd", "contents"]
    assert folded[3] == Finding("warning", "odd", "val", "and 3 more like this")
    assert log.found[-1].as_dict() == {
        "level": "error",
        "code": "missing",
        "split": "val",
        "message": "is missing",
        "record": "image 9",
        "fix": "Put it back",
    }


def test_splits_are_folded_apart():
    both = [Finding("error", "x", split, "") for split in ("a", "a", "b", "b")]
    assert fold(both, most=2) == both


def test_some():
    assert some([1, 2]) == "1, 2"
    assert some(list(range(1200)), 2) == "0, 1, … (1,200 in all)"
