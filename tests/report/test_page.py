import base64
import hashlib
import re
from importlib import resources

from ppo.report.page import assemble

PAGE = assemble("<b>a & b</b>", "QUJD").decode()
FILES = resources.files("ppo.report") / "browser"


def inline(tag):
    return re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)


def hashes(texts):
    return {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts}


def policy():
    directives = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', PAGE)[1].split("; ")
    return {directive.split()[0]: directive.split()[1:] for directive in directives}


def test_the_policy_allows_the_pages_own_scripts_and_styles_and_nothing_else():
    assert policy()["default-src"] == ["'none'"]
    assert len(inline("script")) == 2 and set(policy()["script-src"]) == hashes(inline("script"))
    assert len(inline("style")) == 1 and set(policy()["style-src"]) == hashes(inline("style"))
    assert policy()["base-uri"] == policy()["form-action"] == ["'none'"]


def test_the_policy_comes_before_all_that_it_forbids():
    assert PAGE.index("Content-Security-Policy") < min(
        PAGE.index("<style"), PAGE.index("<script"), PAGE.index("<title")
    )


def test_a_title_is_text_and_no_markup():
    assert "<title>&lt;b&gt;a &amp; b&lt;/b&gt;</title>" in PAGE


def test_a_title_that_looks_like_a_place_stays_as_it_is():
    assert "<title>&lt;!--data--&gt;</title>" in assemble("<!--data-->", "QUJD").decode()


def test_the_page_asks_for_no_other_file():
    markup = re.sub(r"<(script|style)>.*?</\1>", "", PAGE, flags=re.DOTALL)
    assert not re.search(
        r"\b(src|srcset|data|action|poster|background|style|on\w+)=|<(link|iframe|img|object|embed|base)\b", markup
    )
    assert re.findall(r'href="([^"]*)"', markup) == ["#agent"]
    for text in inline("style"):
        assert "url(" not in text and "@import" not in text


def test_text_is_never_taken_for_markup_by_the_pages_own_scripts():
    for file in FILES.iterdir():
        if file.name.endswith(".js"):
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|setTimeout\(\"",
                file.read_text(),
            )


def test_the_library_has_its_licence_beside_it():
    assert "MIT" in (FILES / "uplot" / "LICENSE.txt").read_text()
    assert "v1.6.32" in (FILES / "uplot" / "uPlot.iife.min.js").read_text()[:100]
