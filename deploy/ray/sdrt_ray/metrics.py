"""The metrics of all replicas as one page for Prometheus."""

from prometheus_client.openmetrics import exposition, parser

CONTENT_TYPE = exposition.CONTENT_TYPE_LATEST


class Families:
    """Samples of one name side by side, as the format asks, told apart by a label `replica`."""

    def __init__(self, pages):
        """`pages` are (replica, text)."""
        self.families = {}
        for replica, text in pages:
            for family in parser.text_string_to_metric_families(text):
                samples = [
                    sample._replace(labels=sample.labels | {"replica": replica}) for sample in family.samples
                ]
                if family.name in self.families:
                    self.families[family.name].samples += samples
                else:
                    family.samples = samples
                    self.families[family.name] = family

    def collect(self):
        return self.families.values()


def merged(pages):
    """In the text format of OpenMetrics, as `pages` are."""
    return exposition.generate_latest(Families(pages))
