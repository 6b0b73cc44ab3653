"""How colours look: their contrast, and what the colour-blind see of them.

Contrast is that of the Web Content Accessibility Guidelines 2.1; what the colour-blind see after G. M. Machado, M. M.
Oliveira, L. A. F. Fernandes, "A physiologically-based model for simulation of color vision deficiency", IEEE TVCG 2009,
at severity 1; distances are those of CIELAB 1976, in which 2.3 is just noticeable.
"""

import numpy as np

SEEN = {
    "by most": np.eye(3),
    "without red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "without green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "without blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(axis=1)


def colour(text):
    """#rrggbb, or a browser's rgb(r, g, b), as numbers from 0 to 255."""
    if text.startswith("#"):
        return [int(text[i : i + 2], 16) for i in (1, 3, 5)]
    return [int(number) for number in text.removeprefix("rgb(").removesuffix(")").split(",")]


def linear(text):
    c = np.array(colour(text)) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """From 1 to 21: 4.5 is asked for text, 3 for what else has to be seen."""
    dark, light = sorted(float(linear(text) @ TO_XYZ[1]) for text in (one, other))
    return (light + 0.05) / (dark + 0.05)


def distance(one, other, seen):
    """How different two colours look, seen in one of the ways of `SEEN`."""
    places = []
    for text in (one, other):
        xyz = TO_XYZ @ np.clip(np.asarray(SEEN[seen]) @ linear(text), 0, 1) / WHITE
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        places.append(np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])]))
    return float(np.linalg.norm(places[0] - places[1]))
