"""The README.md of a bundle, written from what the manifest knows."""

from rnn_edge.manifest import Manifest


def write(manifest: Manifest, title: str, notes: str) -> str:
    """A short model card in Markdown; ``notes`` is what its author adds."""
    architecture, provenance = manifest.architecture, manifest.provenance
    state_bytes = sum(pair.width * 4 for pair in manifest.state)
    network = f"{architecture.cell.upper()} {architecture.layers} × {architecture.hidden}"
    kind, graphs = "A recurrent language model", "a step graph"
    if architecture.encoder:
        encoder = architecture.encoder
        network = (
            f"{'bidirectional ' * (encoder.directions == 2)}{architecture.cell.upper()} encoder "
            f"{encoder.layers} × {'2 × ' * (encoder.directions == 2)}{encoder.hidden}, "
            f"decoder {network}, {encoder.attention} attention"
        )
        kind, graphs = "A translator", "an encoder graph and a decoder step graph"
    sizes = dict.fromkeys(str(spec.vocabulary_size) for spec in manifest.tokenizers.values())
    lines = [
        f"# {manifest.name}",
        "",
        f"{title or kind}: {graphs} for rnn-edge.",
        "",
        "| | |",
        "|---|---|",
        f"| network | {network}, embedding {architecture.embedding}, {architecture.parameters:,} parameters |",
        f"| tokens | {manifest.tokenizer.kind}, vocabulary {' and '.join(sizes)} |",
        f"| state | {', '.join(pair.input for pair in manifest.state)}: {state_bytes:,} bytes a stream |",
        f"| weights | {manifest.precision}, {manifest.lowering} lowering |",
        f"| trained on | {provenance.data_title or 'not recorded'} |",
        f"| source | {provenance.data_source or 'not recorded'} |",
        f"| licence of the data | {provenance.data_licence or 'not recorded'} |",
        f"| SHA-256 of the data | {f'`{provenance.data_sha256}`' if provenance.data_sha256 else 'not recorded'} |",
        "",
    ]
    if manifest.metrics:
        lines += ["| measured | value | data | how |", "|---|---|---|---|"]
        lines += [
            f"| {metric.name} | {metric.value:.4f}{metric.unit and ' '}{metric.unit} | {metric.data}, {metric.split} | "
            f"{metric.method.replace('|', chr(92) + '|')} |"  # a signature has bars of its own
            for metric in manifest.metrics
        ]
        lines.append("")
    if notes.strip():
        lines += [notes.strip(), ""]
    lines += ["## Recipe", "", "```toml", provenance.recipe.strip(), "```", ""]
    return "\n".join(lines)


def notes_of(card: str, manifest: Manifest, title: str) -> str:
    """The notes of a card that ``write`` made, empty if it was changed by hand."""
    before, _, after = write(manifest, title, "").partition("## Recipe")
    known = card.startswith(before) and card.endswith(after)
    return card[len(before) : len(card) - len(after)].removesuffix("## Recipe").strip() if known else ""
