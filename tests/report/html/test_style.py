"""Colours of the style sheet: readable by WCAG 2.2, light and dark, and apart for colour-blind eyes."""

import operator
import re
from pathlib import Path

import pytest

import mvquant.report.html as html

SHEET = (Path(html.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")


def palette(scheme):
    light, dark = re.findall(r":root \{(.*?)\}", SHEET, re.DOTALL)[:2]
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})\b", light))
    return {**found, **(dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})\b", dark)) if scheme == "dark" else {})}


def rgb(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    return [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]


def linear(colour):
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgb(colour)]


def luminance(colour):
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))


def contrast(first, second):
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("ground", ["ground", "raised", "hover"])
@pytest.mark.parametrize("ink", ["ink", "quiet", "accent", "worse", "better"])
def test_text_is_readable(scheme, ground, ink):
    colours = palette(scheme)
    assert contrast(colours[ink], colours[ground]) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_stand_out_and_so_do_their_numbers(scheme):
    colours = palette(scheme)
    for mark in ("reading", "recall"):
        assert contrast(colours[mark], colours["ground"]) >= 3
        assert contrast(colours[mark], colours["inside"]) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("ground", ["ground", "raised", "hover"])
def test_lines_that_mean_something_stand_out(scheme, ground):
    """Borders of fields and the line of what nothing beats: WCAG 2.2, 1.4.11."""
    colours = palette(scheme)
    assert contrast(colours["strong"], colours[ground]) >= 3


# Machado, Oliveira & Fernandes 2009, severity 1.0, on linear RGB.
PROTANOPIA = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
DEUTERANOPIA = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))
TRITANOPIA = ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("eyes", [PROTANOPIA, DEUTERANOPIA, TRITANOPIA], ids=["protan", "deutan", "tritan"])
def test_reading_and_recall_stay_apart_for_colour_blind_eyes(scheme, eyes):
    colours = palette(scheme)
    seen = [
        [min(1.0, max(0.0, sum(map(operator.mul, row, linear(colours[name]))))) for row in eyes]
        for name in ("reading", "recall")
    ]
    distance = sum((first**0.4 - second**0.4) ** 2 for first, second in zip(*seen, strict=True)) ** 0.5
    assert distance > 0.25


def test_motion_stops_for_those_who_ask():
    assert "@media (prefers-reduced-motion: reduce)" in SHEET
