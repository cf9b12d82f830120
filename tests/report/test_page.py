"""Facts in, HTML out: what a page says, and that it can be read by anybody."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from sample_pages import (
    HOSTILE,
    ended,
    make_batch,
    make_cycle,
    make_estimate,
    make_facts,
    make_training,
    read,
    read_page,
)

from retraining import gate
from retraining.cycle import Challenger, Cycle, Probation
from retraining.errors import PipelineError
from retraining.gate import Verdict
from retraining.ground_truth import Refusal
from retraining.marks import CHOSEN, RANDOM, Mark
from retraining.outcome import Outcome
from retraining.registry.facts import Manifest, RegisteredVersion, TrainingFile
from retraining.report import charts, page
from retraining.report.drift import ChangedData, compare_examples
from retraining.report.facts import FeatureImportance, PageFacts, of_cycle
from retraining.report.page import SECTIONS, make_page

UNDRAWN = charts.Drawing("", 1, 1)
METRES = [0.0066, 0.0072, 0.0059, 0.0081, 0.0044, 0.006]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the pictures empty, which take most of the time of a page."""
    monkeypatch.setattr(charts, "drawing", lambda *_: UNDRAWN)


class TestPage:
    """What holds for every page."""

    def test_it_is_the_same_for_the_same_facts(self) -> None:
        """No time, no random id."""
        assert make_page(make_facts()).content == make_page(make_facts()).content

    def test_hostile_names_are_text(self) -> None:
        """Markup, line breaks, stray bytes, formulas and reversed writing are shown as they are."""
        cycle = make_cycle(
            names=[f"{number}{HOSTILE}".replace("\udcff", "") for number in range(6)],
            training=make_training(
                ERROR_NAME=HOSTILE,
                ERROR_UNIT=HOSTILE,
                COUNTED_THINGS=HOSTILE,
                DESCRIBED_THINGS=HOSTILE,
            ),
            data_quality={HOSTILE: HOSTILE},
        )
        values = pd.DataFrame({"text": [HOSTILE, "<b>", HOSTILE]}, dtype=object)
        changed = compare_examples(values, values)
        shifts = [replace(one, feature=HOSTILE) for one in changed.shifts]
        facts = make_facts(
            cycle=cycle,
            message=HOSTILE,
            production=HOSTILE,
            history=[
                make_batch(number, version=HOSTILE, outcome=HOSTILE, unit=HOSTILE)
                for number in range(2)
            ],
            rejected=[Refusal(HOSTILE, HOSTILE, HOSTILE)],
            changed=replace(changed, shifts=shifts, lost=[HOSTILE], gained=[HOSTILE]),
            importances=[FeatureImportance(HOSTILE, 1.0, 0.1)],
            lineage={HOSTILE: {HOSTILE: HOSTILE}},
            missing={},
        )
        content = make_page(facts).content
        reader = read(content)
        assert r"<script>alert('x')</script>\n" in reader.text
        assert r"\udcff\u202e$x_1$\x00.csv" in reader.text
        assert "could not be made" not in reader.text
        content.encode()

    @pytest.mark.usefixtures("undrawn")
    @pytest.mark.parametrize("where", ["report/page.html", "commands/replay.html"])
    def test_no_page_may_run_or_fetch_anything(self, where: str) -> None:
        """Not even if a name found a hole: the policy comes first, and needs no exception.

        Styles stand in the page, as those of the charts stand in their marks.
        """
        template = (page.TEMPLATE.parents[1] / where).read_text()
        head = template[template.index("<head>") :]
        _, charset, policy, referrer, *_ = head.splitlines()
        assert charset == '<meta charset="utf-8">'
        assert referrer == '<meta name="referrer" content="no-referrer">'
        (content,) = re.findall(
            r'<meta http-equiv="Content-Security-Policy" content="(.*)">', policy
        )
        assert dict(one.split(" ", 1) for one in content.split("; ")) == {
            "default-src": "'none'",
            "style-src": "'unsafe-inline'",
            "base-uri": "'none'",
            "form-action": "'none'",
        }
        made = make_page(make_facts()).content if where == "report/page.html" else template
        assert policy in made
        assert not re.search(r"<script|\bon\w+\s*=|javascript:|@import|<base|<form", made, re.I)
        assert not re.search(r"(?:src|href|action)=(?![\"']#)|url\((?!#)|//", made, re.I)

    def test_a_failure_with_a_hostile_text_is_text(self) -> None:
        """The sentence about a section that failed may quote a file."""
        reader = read_page(make_facts(missing={"changed": ValueError(HOSTILE)}))
        assert r"ValueError: <script>alert('x')</script>\n" in reader.text

    @pytest.mark.slow
    def test_a_large_cycle_stays_small(self) -> None:
        """A thousand recordings, batches and features: tables are cut and say so."""
        names = [f"a_rather_long_name_of_a_recording_{i}.csv" for i in range(1000)]
        errors = [i / 10 for i in range(1000)]
        cycle = make_cycle(
            names=names,
            champion_errors=errors,
            challenger_errors=[0.0] * 1000,
            data_quality=dict.fromkeys(names, "scores: 1 of 9 values missing or impossible"),
        )
        table = pd.DataFrame({f"feature_{number}": range(50) for number in range(400)})
        facts = make_facts(
            cycle=cycle,
            history=[make_batch(0)] * 500,
            changed=compare_examples(table, table),
        )
        reader = read_page(facts)
        assert "By recording, the worst of production first; 700 more are left out" in reader.text
        assert "90 %; 100 more are left out here" in reader.text
        assert [tag for tag, _ in reader.tags].count("svg") == 5 + page.MOST_SHIFTS

    def test_one_recording_needs_no_chart(self) -> None:
        """Numbers say it; without a verdict there is no gate."""
        cycle = make_cycle(names=["0.csv"], champion_errors=[20.0], challenger_errors=None)
        facts = make_facts(
            cycle=cycle,
            history=[make_batch(0)],
            changed=ChangedData(),
            importances=(),
            estimates=[make_estimate(0)],
        )
        assert make_page(facts).figures == {}
        reader = read_page(facts)
        assert "svg" not in {tag for tag, _ in reader.tags}
        assert "The gate's criteria" not in reader.text

    def test_charts_are_in_the_font_and_the_colours_of_the_page(self) -> None:
        """So they follow its theme, and fit where its font is another one."""
        drawn = "".join(re.findall(r"<svg.*?</svg>", make_page(make_facts()).content, re.S))
        assert "DejaVu" not in drawn
        assert "var(--champion)" in drawn
        assert not re.findall(r"#[0-9a-f]{6}\b(?!\))", drawn)

    def test_every_chart_has_a_table(self) -> None:
        """In its own section or, for the differences, in the one before."""
        content = make_page(make_facts()).content
        sections = re.findall(r"<section.*?</section>", content, re.S)
        with_chart = [one for one in sections if "<svg" in one]
        assert len(with_chart) == 6
        assert sum("<table>" in one for one in with_chart) == 5

    @pytest.mark.usefixtures("undrawn")
    @pytest.mark.parametrize("outcome", Outcome)
    def test_every_outcome_has_a_page(self, outcome: Outcome) -> None:
        """Its word, its mark, its headline and what to do."""
        reader = read_page(make_facts(outcome=outcome, production="7"))
        said = {"production": "7", "champion": "1"}
        headline = outcome.headline.format(**said)
        assert f"{outcome.mark} {outcome.word} {headline}" in reader.text
        step = outcome.next_step.format(**said).replace("`", "")
        assert f"What to do: {step}" in reader.text
        badge = next(values for _, values in reader.tags if "badge" in str(values.get("class")))
        assert badge["class"] == f"badge {outcome.tone}"

    def test_every_tone_has_a_colour(self) -> None:
        """Of paper and ink, light and dark."""
        style = page.TEMPLATE.read_text()
        for tone in {outcome.tone for outcome in Outcome} - {""}:
            assert f".badge.{tone}{{" in style
            assert style.count(f"--{tone}-paper:") == 2

    def test_every_reason_has_plain_words(self) -> None:
        """All that the gate can say no with."""
        source = Path(gate.__file__).read_text()
        assert set(re.findall(r'^        "([A-Z_]{6,})",$', source, re.M)) == set(page.REASONS)
        cycle = make_cycle()
        cycle.verdict = gate.judge([5.0, 6.0], [5.0, 7.0], n_leaked=1, no_model_errors=[1, 1])
        text = read_page(make_facts(outcome=Outcome.NOT_PROMOTED, cycle=cycle)).text
        assert (
            "In plain words: production was trained on some of the new recordings; the "
            "challenger's mean error is not low enough; the models differ on too few recordings; "
            "the gain may be chance; the challenger is no better than no model at all." in text
        )

    def test_sessions_are_told_where_they_count(self) -> None:
        """In the tile, in plain words, with the interval and with the number that is needed."""
        cycle = make_cycle()
        cycle.verdict = gate.judge([5.0, 6.0, 7.0], [4.0, 5.0, 6.0], sessions=["a", "a", ""])
        text = read_page(make_facts(outcome=Outcome.NOT_PROMOTED, cycle=cycle)).text
        assert "3 recordings of 2 sessions, paired" in text
        assert "the models differ on too few sessions; the gain may be chance." in text
        assert "(bootstrap-t over sessions)" in text
        assert re.search(r"a gain of this size needs about \d+ sessions", text)

    def test_rejected_files_are_told_on_top(self) -> None:
        """How many wait, and below each with what is wrong."""
        facts = make_facts(rejected=[Refusal("bad.csv", "lacks the columns x", "add them")])
        text = read_page(facts).text
        assert "Rejected files that wait to be mended: 1, see below." in text
        assert "bad.csvlacks the columns xadd them" in text

    def test_a_quiet_night_has_a_short_page(self) -> None:
        """No module, no cycle: what was said, and what to do."""
        facts = PageFacts(
            settings=make_cycle().settings,
            at="2026-11-23T02:00:07+01:00",
            outcome=Outcome.WAITING,
            message="waiting: 3 of 15 new ground truth files",
            production="",
        )
        reader = read_page(facts)
        assert "… Waiting Nothing was judged Waiting: 3 of 15 new ground truth files" in reader.text
        assert reader.headings == [1, 2]


class TestSections:
    """What each section tells, and that none needs another."""

    def test_changes_of_production_are_marked(self) -> None:
        """Between the batches, and after the last one."""
        history = [make_batch(number, version=one) for number, one in enumerate("133")]
        content = make_page(make_facts(history=history, production="4")).content
        assert "to version 3 after batch 1; to version 4 after batch 3" in content
        assert ">to version 3</text>" in content

    def test_batches_in_another_unit_are_not_drawn(self) -> None:
        """The metric was changed: 5 mm beside 22 % would be a lie; the table has them."""
        foreign = make_batch(0, mean_error=5.0, unit="mm")
        facts = make_facts(history=[foreign, make_batch(1), make_batch(2)])
        text = read_page(facts).text
        assert "2 batches were monitored, 2 of them above the threshold of 10 %." in text
        assert "1 more, in another unit, stand in the table only." in text
        assert "5.0 mm" in text
        assert "from 22.0 to 23.0 %" in make_page(facts).content
        only_foreign = read_page(replace(facts, history=[foreign])).text
        assert "0 batches were monitored" in only_foreign

    def test_an_interval_that_nobody_wrote_is_a_dash(self) -> None:
        """And no chart is lost by it."""
        nan = float("nan")
        history = [make_batch(0, interval_low=nan, interval_high=nan), make_batch(1)]
        made = make_page(make_facts(history=history))
        assert "error_over_time" in made.figures
        assert f'<td class="number">{page.NOTHING}</td>' in made.content
        assert "nan" not in read(made.content).text

    def test_words_of_an_older_pipeline_stand_for_themselves(self) -> None:
        """An outcome that this one does not know."""
        assert (
            "on probation"
            in read_page(make_facts(history=[make_batch(0, outcome="on_probation")])).text
        )

    def test_ties_are_neither_better_nor_worse(self) -> None:
        """Worked out by hand from the six pairs: 3 better, 1 worse, 2 alike."""
        text = read_page(make_facts()).text
        assert "closer to the truth on 3 recordings and farther from it on 1; 2 are alike" in text

    def test_a_lost_probation_shows_the_version_before(self) -> None:
        """It stands in the challenger's place, with its errors and the verdict over both."""
        cycle = make_cycle(challenger_errors=None)
        assert cycle.monitoring is not None
        errors = cycle.monitoring.errors.assign(error=1.0)
        verdict = gate.judge(cycle.monitoring.errors["error"], errors["error"])
        cycle.champion = replace(cycle.champion, version=RegisteredVersion(5, "run 5", {}, 0))
        before = RegisteredVersion(4, "run 4", {}, 0)
        cycle.probation = Probation(before, errors, replace(verdict, criteria=()))
        facts = of_cycle(ended(cycle, Outcome.ROLLED_BACK, production=4))
        text = read_page(facts).text
        assert "Version 4 is production again" in text
        assert "error of version 51" in text
        assert "error of version 41.0 %" in text
        assert "What the challenger relies on" not in text

    def test_what_failed_costs_one_section(self, caplog: pytest.LogCaptureFixture) -> None:
        """A text column cost the report of a whole promotion."""
        error = ValueError("could not convert string to float: 'unknown'")
        reader = read_page(make_facts(missing={"changed": error}))
        assert "This part could not be made: ValueError: could not convert" in reader.text
        assert "Everything else stands." in reader.text
        assert_all_titles(reader.text)
        (line,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
        assert "the report lacks 'What changed in the data'" in line

    @pytest.mark.usefixtures("undrawn")
    @pytest.mark.parametrize("section", SECTIONS, ids=lambda one: one.id)
    def test_each_section_may_fail_alone(
        self, monkeypatch: pytest.MonkeyPatch, section: page.Section
    ) -> None:
        """A bug in its text: one sentence with the place of it; the others stand."""

        def fail(_: PageFacts) -> list[page.Piece]:
            raise ZeroDivisionError("a bug in\nthe text")

        broken = [replace(one, make=fail) if one is section else one for one in SECTIONS]
        monkeypatch.setattr(page, "SECTIONS", broken)
        text = read_page(make_facts()).text
        assert text.count("This part could not be made") == 1
        said = f"{section.title} This part could not be made: ZeroDivisionError: a bug in"
        assert said in text
        assert r"a bug in\nthe text (test_page.py:" in text
        assert_all_titles(text)

    @pytest.mark.usefixtures("undrawn")
    @pytest.mark.parametrize(
        ("name", "title"),
        [(name, section.title) for section in SECTIONS for name in section.needs],
    )
    def test_each_fact_may_be_missing(self, name: str, title: str) -> None:
        """An expected error is told in its own words, without the place."""
        facts = make_facts(missing={name: PipelineError("run 7 was edited; put it back")})
        text = read_page(facts).text
        assert f"{title} This part could not be made: run 7 was edited; put it back. Every" in text
        assert text.count("This part could not be made") == 1
        assert_all_titles(text)

    @pytest.mark.usefixtures("undrawn")
    @pytest.mark.parametrize(
        ("chart", "title"),
        [
            ("error_over_time", "Production's error over time"),
            ("estimates_over_time", "Estimated before labels came"),
            ("true_and_predicted", "This batch, recording by recording"),
            ("paired_differences", "Paired differences"),
            ("shift", "What changed in the data"),
            ("importance", "What the challenger relies on"),
        ],
    )
    def test_each_chart_may_fail(
        self, monkeypatch: pytest.MonkeyPatch, chart: str, title: str
    ) -> None:
        """Its section says so; the charts of the others are there."""
        monkeypatch.setattr(charts, chart, lambda *_: 1 / 0)
        made = make_page(make_facts())
        assert f"{title} This part could not be made: ZeroDivisionError" in read(made.content).text
        others = {"error_over_time", "estimates_over_time", "true_and_predicted"}
        others |= {"paired_differences", "importance"}
        assert set(made.figures) == others - {chart}

    def test_recordings_that_do_not_read_cost_no_verdict(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two sections need them; the verdict on top and the numbers stand."""
        monkeypatch.setattr(Cycle, "recordings", lambda _: 1 / 0)
        text = read_page(make_facts()).text
        assert text.count("This part could not be made") == 2
        assert "Version 2 is production now" in text
        assert "error of version 1" in text

    @pytest.mark.slow
    def test_numbers_on_top_may_fail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A verdict of another form: what was decided stands all the same."""
        cycle = make_cycle()
        cycle.verdict = "promote"  # type: ignore[assignment]
        text = read_page(make_facts(cycle=cycle)).text
        assert "Version 2 is production now" in text
        assert "Production's error over time 3 batches were monitored" in text


def assert_all_titles(text: str) -> None:
    """Every section has its place."""
    for section in SECTIONS:
        assert text.count(section.title) >= 2, section.title


class TestWindows:
    """Which recordings decided, which were compared, and what that means."""

    def windowed(self, verdict: Verdict | None = None) -> Cycle:
        """Return a cycle whose first half arrived before the other one."""
        cycle = make_cycle(min_new_files=2, window=4)
        half = len(cycle.batch.files) // 2
        files = (replace(one, night=int(at >= half)) for at, one in enumerate(cycle.batch.files))
        return replace(
            cycle, batch=replace(cycle.batch, files=tuple(files)), verdict=verdict or cycle.verdict
        )

    def test_each_recording_says_which_window_it_is_in(self) -> None:
        """In words and in the table; paired differences show what was compared."""
        cycle = self.windowed()
        windows = [one.window for one in cycle.recordings()]
        n_decide, n_compared = windows.count("decides"), len(windows) - windows.count("")
        text = read_page(make_facts(cycle=cycle)).text
        assert f"The newest {n_decide} decide whether production is good enough" in text
        assert n_decide < n_compared == len(windows)
        assert f"the newest {n_compared} compare the models" in text

    def test_older_ones_are_said_to_stay(self) -> None:
        """A page tells where healthy files go."""
        cycle = replace(
            self.windowed(), settings=replace(self.windowed().settings, window=2, significance=0.5)
        )
        text = read_page(make_facts(cycle=cycle)).text
        assert "older ones stay in new_gts/ until a promotion" in text
        healthy = ended(make_cycle(challenger_errors=None), Outcome.HEALTHY)
        text = read_page(make_facts(cycle=healthy, outcome=Outcome.HEALTHY)).text
        assert "The files stay in new_gts/ until a promotion; the newest ones decide." in text

    def test_it_grows_until_it_holds_enough_sessions(self) -> None:
        """Five recordings a night, of one session: 30 of them are six, and ten are needed."""
        cycle = make_cycle(
            min_new_files=15,
            window=30,
            names=[f"{n:02}.csv" for n in range(80)],
            champion_errors=[20.0] * 80,
            challenger_errors=[10.0] * 80,
        )
        files = [
            replace(one, night=at // 5, session=f"day {at // 5}")
            for at, one in enumerate(cycle.batch.files)
        ]
        cycle = replace(cycle, batch=replace(cycle.batch, files=tuple(files)))
        assert (len(cycle.decided.files), cycle.window.n_sessions) == (15, 10)
        alone = [replace(one, session="") for one in files]
        cycle = replace(cycle, batch=replace(cycle.batch, files=tuple(alone)))
        assert len(cycle.window.files) == 30

    def test_the_tiles_tell_which_window_they_are_of(self) -> None:
        """Both models' errors on what was compared, production's on what decided beside it."""
        cycle = self.windowed()
        facts = make_facts(cycle=cycle, history=(make_batch(1, n_decided=3, mean_error=33.5),))
        text = read_page(facts).text
        assert cycle.verdict is not None
        mean = f"{cycle.verdict.champion_mean_error:.1f} %"
        assert f"error of version 1{mean}on the" in text.replace(" on the", "on the")
        assert "33.5 % on the newest 3, which decided" in text

    def test_it_tells_how_listed_recordings_weigh(self) -> None:
        """Four chosen and two random ones of a pool of 12; and a batch of chosen ones alone."""
        cycle = make_cycle(min_new_files=6, window=6)
        names = [one.name for one in cycle.batch.files]
        files = [
            replace(one, mark=Mark(CHOSEN if at < len(names) - 2 else RANDOM, 2 * len(names), 4))
            for at, one in enumerate(cycle.batch.files)
        ]
        listed = replace(cycle, batch=replace(cycle.batch, files=tuple(files)))
        facts = make_facts(cycle=listed, history=(make_batch(1, n_decided=6, mean_error=33.5),))
        text = read_page(facts).text
        n_chosen, n_pool = len(names) - 2, 2 * len(names)
        told = f"estimated for the pool of {n_pool} from {n_chosen} chosen and 2 random recordings"
        assert f"The mean error of those that decide is {told}: each chosen one weighs" in text
        assert "listed as" in text
        assert "which decided and stand for the pool that they were listed from" in text
        chosen = [replace(one, mark=Mark(CHOSEN, 12, 4)) for one in files]
        selected = replace(cycle, batch=replace(cycle.batch, files=tuple(chosen)))
        text = read_page(make_facts(cycle=selected)).text
        assert f"This batch was selected: {len(names)} chosen recordings of a list" in text
        assert "listed as" not in read_page(make_facts(cycle=cycle)).text

    def test_both_p_values_and_what_is_still_above_are_told(self) -> None:
        """A better version may not be a good one yet."""
        champion, challenger = [30.0, 20.0, 31.0, 22.0, 25.0, 24.0], [12.0] * 6
        verdict = gate.judge(champion, challenger, threshold=11)
        assert verdict.promote
        assert verdict.p_value == verdict.unconditional_p_value
        nearer = gate.judge(champion, challenger, threshold=24)
        assert nearer.p_value > nearer.unconditional_p_value
        cycle = self.windowed(nearer)
        text = read_page(make_facts(cycle=cycle)).text
        assert f"of any night it would be {nearer.unconditional_p_value:.3g}" in text
        cycle = ended(self.windowed(verdict), Outcome.PROMOTED, verdict=verdict.as_dict())
        text = read_page(make_facts(cycle=cycle)).text
        assert "Version 2 is better and still above the threshold of 11 %: check more" in text
        assert "Nothing." not in text


class TestNumbers:
    """Enough digits for every unit."""

    def test_small_errors_keep_their_digits(self) -> None:
        """A loss of 0.0066 m does not read 0.0 m, anywhere."""
        training = make_training(ERROR_UNIT="m", THRESHOLD=0.005, COUNTED_THINGS="")
        cycle = make_cycle(
            champion_errors=METRES,
            challenger_errors=[error - 0.0005 for error in METRES],
            training=training,
            counted=False,
        )
        history = [
            make_batch(0, unit="m", mean_error=0.0066, interval_low=0.0051, interval_high=0.0075)
        ]
        made = make_page(make_facts(cycle=cycle, history=[*history, *history]))
        text = read(made.content).text
        assert "error of version 10.0066 m95 % interval 0.0051 to 0.0075 m" in text
        assert "threshold0.005 m" in text
        assert "error of version 20.0059 m" in text
        assert "0.csv0.00660.0061+0.00050" in text
        assert "Mean gain +0.00050 m" in text
        assert "0.0 m" not in text
        assert not re.search(r"\b0\.0\b(?! m)", made.content.split("<section")[0])

    def test_differences_have_a_sign(self) -> None:
        """A true minus; what is nothing has none, nor has the noise of arithmetic."""
        values = (0.1 + 0.2 - 0.3, -0.0004, 12.34, 0.0)
        assert [charts.signed(one) for one in values] == [
            "0.0",
            f"{charts.MINUS}0.00040",
            "+12.3",
            "0.0",
        ]

    def test_zero_has_no_sign(self) -> None:
        """Of a column with two decimals."""
        assert charts.alike([-0.001, 1.5]) == ["0.00", "1.50"]

    def test_importance_of_a_class(self) -> None:
        """Of 100 examples how many more are predicted wrongly."""
        text = read_page(make_facts()).text
        assert "how many more of 100 tracks are predicted wrongly when one feature" in text
        assert "more tracks predicted wrongly, of 100" in text
        assert "speed3.200.40" in text

    def test_importance_of_a_label_with_decimals(self) -> None:
        """By how much the mean absolute error grows, in digits that tell."""
        cycle = make_cycle(training=make_training(LABEL_COLUMN="height_m"))
        assert cycle.challenger is not None
        result = dataclasses.replace(
            cycle.challenger.result, examples=pd.DataFrame({"height_m": [1.5, 2.5]})
        )
        cycle.challenger = Challenger(result, Manifest(()), None)
        cycle.verdict = None
        found = (FeatureImportance("diameter", 0.00231, 0.0004), FeatureImportance("slope", 0, 0))
        text = read_page(make_facts(cycle=cycle, importances=found)).text
        assert "by how much the mean absolute error of height_m grows when one feature" in text
        assert "growth of the mean absolute error of height_m" in text
        assert "diameter0.002310.000400" in text
        assert "wrongly" not in text.split("What the challenger relies on")[-1]


class TestLineage:
    """What everything was made of."""

    def test_files_and_long_tables_are_seen_on_demand(self) -> None:
        """Forty hashes of code are in the way of nobody."""
        code = {f"{number}.py": "ab" * 32 for number in range(40)}
        facts = make_facts(lineage={"Packages": {"python": "3.11"}, "Code, SHA-256": code})
        content = make_page(facts).content
        assert "<summary>Code, SHA-256: 40 lines</summary>" in content
        assert "<summary>New recordings: 6 files, 0 rows</summary>" in content
        assert "<summary>Version 1 was trained on: 2 files, 200 rows</summary>" in content
        assert "<summary>Packages" not in content

    def test_hashes_are_whole(self) -> None:
        """They are there to be compared."""
        cycle = make_cycle()
        manifest = Manifest((TrainingFile("0.csv", "ab" * 32, 100),))
        cycle.champion = replace(cycle.champion, manifest=manifest)
        assert "ab" * 32 in read_page(make_facts(cycle=cycle)).text
