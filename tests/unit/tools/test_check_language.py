"""tools/check_language.py."""

from __future__ import annotations

from pathlib import Path

import check_language
import pytest


def test_check_fails_for_word_above_limit_and_forbidden_identifier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, other = tmp_path / "module.py", tmp_path / "other.py"
    module.write_text('"""Return 1 if a response arrives. ``where`` is code."""\nresult = "where"\n')
    (tmp_path / "README.ru.md").write_text("where where")
    assert check_language.main(tmp_path) == 0
    other.write_text("# where nobody asked\nfor each in (): each\n")
    (tmp_path / "README.md").write_text("```\nnobody\n```\nIt was told.")
    assert check_language.main(tmp_path) == 1
    printed = capsys.readouterr().out
    assert f"{other}:2: the identifier 'each' is too general." in printed
    assert "code: 'where' exceeds 15 per 10,000 words." in printed
    assert "documents: 'told' exceeds 2 per 10,000 words." in printed
    assert "documents: 'nobody'" not in printed


def test_sentence_of_first_page_above_limit_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longest = " ".join(["word"] * 24) + " `code of several words`"
    page = tmp_path / "README.ru.md"
    parts = [f"- {longest}", f"- [{longest}](https://a.example/b)", "", f"{longest}. {longest}!", "", "| a | b |"]
    page.write_text("\n".join([*parts, f"| {longest} | {longest} |", "```sh", longest, longest, "```", longest]))
    assert check_language.main(tmp_path) == 0
    (tmp_path / "README.md").write_text(f"The first is short. Another, slightly longer one,\nhas {longest}.")
    (tmp_path / "CHANGELOG.md").write_text(f"{longest} {longest}")
    capsys.readouterr()
    assert check_language.main(tmp_path) == 1
    assert "README.md: a sentence has 30 words: Another, slightly longer one, has word … " in capsys.readouterr().out
