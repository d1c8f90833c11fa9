"""Measurements behind the claims of the store and the training step; ``python -m benchmarks`` runs them all.

Everything that is compared is measured side by side in one run, in rounds in which the cases take turns in
a random order. Figures are medians over the rounds, ratios are medians of the rounds' own ratios. Uses the
package as any user would: no private names, no fixtures.
"""
