"""Generated text from which a model of a few thousand parameters can learn."""

PARAGRAPHS = [
    f"Paragraph {i}: the quick brown fox number {i * i % 97} jumps over {i} lazy dogs and says "
    + " ".join(f"word{i * j % 41}" for j in range(40))
    for i in range(300)
]
