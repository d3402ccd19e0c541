"""Servers under load, side by side: pictures a second, and the share of pictures that come within so many seconds."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from peers_report import BOTTOM, HEIGHT, PAGE, TOP, WIDTH, text, ticks  # noqa: E402

# Of the first record, the second, and so on, on a light page and on a dark one.
COLOURS = (
    ("#66758a", "#8b9bb0"),
    ("#cf430b", "#ff8a3d"),
    ("#1f4f94", "#9cc4ff"),
    ("#2f7d4f", "#6cc08f"),
    ("#7d4f9e", "#c39be0"),
)
# Of a line's points: more of them no screen shows.
MOST_POINTS = 200


def chart(records, caption):
    """`records` by the names that the chart gives them."""
    if len(records) > len(COLOURS):
        sys.exit(f"report.py: a chart shows {len(COLOURS)} records at most")
    if not all(record.answers for record in records.values()):
        sys.exit("report.py: a record without pictures has no place in a chart")
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {size}>',
            style(),
            f'<rect class="page" {size} rx="8"/>',
            *bars(records),
            *curves(records),
            text(24, HEIGHT - 18, caption, "quiet"),
            "</svg>\n",
        ]
    )


def style():
    def colours(dark):
        page = (
            ("#0d1117", "#e6edf3", "#9198a1", "#30363d") if dark else ("#ffffff", "#1f2328", "#59636e", "#d9dee3")
        )
        servers = [
            f".of{i} {{ fill: {of[dark]} }} .line.of{i} {{ stroke: {of[dark]} }}" for i, of in enumerate(COLOURS)
        ]
        return "\n".join([PAGE.format(*page), *servers, ".line { fill: none }"])

    return f"""<style>
text {{ font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }}
.title {{ font-size: 16px; font-weight: 600 }} .bold {{ font-weight: 600 }} .quiet {{ font-size: 12px }}
.line {{ stroke-width: 2 }}
{colours(dark=False)}
@media (prefers-color-scheme: dark) {{
{colours(dark=True)}
}}
</style>"""


def bars(records):
    yield text(24, 34, "Pictures a second", "title")
    yield text(24, 54, "all users together; how many times the first", "quiet")
    left, longest, pitch = 24, 220, min(64, (BOTTOM - TOP) / len(records))
    rates = [record.pictures_per_second() for record in records.values()]
    for i, (name, rate) in enumerate(zip(records, rates, strict=True)):
        top, length = TOP + i * pitch, longest * rate / max(rates)
        times = f", {rate / rates[0]:.1f}x" if i else ""
        yield text(left, top + pitch * 0.3, name, "bold")
        yield (
            f'<rect class="of{i}" x="{left}" y="{top + pitch * 0.42:.1f}"'
            f' width="{max(length, 1):.1f}" height="{pitch * 0.36:.1f}" rx="2"/>'
        )
        yield text(left + length + 8, top + pitch * 0.6 + 4, f"{rate:.2f}{times}")


def curves(records):
    """Share of the pictures against seconds, in the colours of the bars."""
    left, right = 430, 780
    yield text(left - 28, 34, "Seconds to a picture", "title")
    yield text(left - 28, 54, "share of the pictures that came within; dots: p95", "quiet")
    tick, longest = ticks(max(record.answers[-1][1] for record in records.values()))

    def place(seconds, share):
        return left + (right - left) * seconds / longest, BOTTOM - (BOTTOM - TOP) * share

    for share in (0, 0.25, 0.5, 0.75, 1):
        _, y = place(0, share)
        yield f'<line class="grid" x1="{left - 4}" x2="{right + 4}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield text(left - 12, y + 4, f"{share:.0%}", "quiet", "end")
    for i in range(round(longest / tick) + 1):
        yield text(place(i * tick, 0)[0], BOTTOM + 20, f"{i * tick:g}", "quiet", "middle")
    for i, record in enumerate(records.values()):
        seconds = [took for _, took in record.answers]
        shares = [j / MOST_POINTS for j in range(1, MOST_POINTS + 1)]
        points = [place(seconds[0], 0), *(place(record.percentile(100 * share), share) for share in shares)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline class="line of{i}" points="{path}"/>'
        x, y = place(record.percentile(95), 0.95)
        yield f'<circle class="of{i}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
        yield text(right + 14, TOP + 14 + 18 * i, f"p95 {record.percentile(95):.1f} s", f"of{i} bold")
