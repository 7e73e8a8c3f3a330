"""A metric in the form that `evaluate` loads: the published formulas, on 1 for yes, 0 for no, -1 for no answer."""

import datasets
import evaluate


class ConfusionRates(evaluate.Metric):
    def _info(self):
        features = {"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}
        return evaluate.MetricInfo(
            description="precision, recall and F1 (van Rijsbergen, 1979), and the yes-ratio of POPE (Li et al., 2023)",
            citation="",
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references, positive=1):
        pairs = list(zip(predictions, references, strict=True))
        true_positive = sum(p == r == positive for p, r in pairs)
        false_positive = sum(p == positive != r for p, r in pairs)
        false_negative = sum(r == positive != p for p, r in pairs)
        precision = true_positive / (true_positive + false_positive)
        recall = true_positive / (true_positive + false_negative)
        return {
            "accuracy": sum(p == r for p, r in pairs) / len(pairs),
            "precision": precision,
            "recall": recall,
            "f1": 2 / (1 / precision + 1 / recall),
            "yes_ratio": (true_positive + false_positive) / len(pairs),
        }
