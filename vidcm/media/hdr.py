"""High dynamic range and wide gamut to the range of SDR video, Rec. ITU-R BT.709.

Code values become light on a display of 1000 cd/m2, by ST 2084 (PQ) or HLG. The tone curve (EETF)
of Report ITU-R BT.2390 brings it to 203 cd/m2, the reference white of Report BT.2408; it leaves the
lower half of the range alone. Primaries are converted to those of BT.709, what lies outside them
is clipped, and the result is coded for a display of gamma 2.4 (Rec. BT.1886). Metadata of the
mastering display are not used, so that all frames of all clips are treated alike.
"""

from __future__ import annotations

from functools import cache

import av
import numpy as np

PEAK = 1000.0  # cd/m2 of the display that HDR is rendered for; brighter is white
WHITE = 203.0  # cd/m2 of reference white, which becomes white of SDR
GAMMA = 2.4  # of an SDR display, BT.1886
ROWS = 64  # converted at once, to keep memory small

PQ, HLG = 16, 18  # transfer characteristics, Rec. ITU-T H.273 table 3
BT709, BT2020, P3_D65 = 1, 9, 12  # colour primaries, H.273 table 2
D65 = (0.3127, 0.3290)
CHROMATICITIES = {
    BT709: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    P3_D65: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}


def needs_conversion(frame: av.VideoFrame) -> bool:
    """Whether a frame is HDR (PQ or HLG), or has the primaries of BT.2020."""
    return frame.color_trc in (PQ, HLG) or frame.color_primaries == BT2020


def to_sdr(codes: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Convert RGB of HDR or wide-gamut video to RGB of SDR video.

    Args:
        codes: uint16 `(h w 3)`, 65535 is the code value 1.
        transfer: transfer characteristics, numbered as in H.273; all but `PQ` and `HLG` are taken
            for an SDR display's, whose tones stay.
        primaries: colour primaries, likewise; BT.2020 if they are not known here.

    Returns:
        uint8 `(h w 3)`.
    """
    matrix = _to_bt709(primaries if primaries in CHROMATICITIES else BT2020)
    table = _light(transfer)
    out = np.empty(codes.shape, np.uint8)
    for top in range(0, len(codes), ROWS):
        light = table[codes[top : top + ROWS]]
        if transfer == HLG:
            light = _hlg_display(light)
        if transfer in (PQ, HLG):
            light = _tone_mapped(light)
        light = np.clip(light @ matrix.T, 0, 1)
        out[top : top + ROWS] = _codes()[_index(light)]
    return out


def _index(light: np.ndarray) -> np.ndarray:
    """Places of values in [0, 1] in tables over `STEPS`, which are denser in the dark."""
    return (np.sqrt(light) * 65535 + 0.5).astype(np.uint16)


STEPS = (np.arange(65536) / 65535) ** 2


@cache
def _codes() -> np.ndarray:
    """8-bit code values of SDR for light of `STEPS`."""
    return np.rint(255 * STEPS ** (1 / GAMMA)).astype(np.uint8)


@cache
def _gain() -> np.ndarray:
    """Factors of the tone curve for light of `STEPS` times `PEAK`; the results have 1 as white."""
    light = PEAK * STEPS
    mapped = pq_to_light(tone_curve(light_to_pq(light)))
    return (mapped / np.maximum(light, 1e-12) / WHITE).astype(np.float32)


@cache
def _system_gamma() -> np.ndarray:
    """Factors of the OOTF of HLG for luminances of `STEPS`: gamma is 1.2 at 1000 cd/m2."""
    return (PEAK * STEPS**0.2).astype(np.float32)


@cache
def _light(transfer: int) -> np.ndarray:
    """Light of each 16-bit code: cd/m2 for PQ, of the scene for HLG, 1 is white for SDR."""
    codes = np.arange(65536) / 65535
    if transfer == PQ:
        light = np.minimum(pq_to_light(codes), PEAK)
    elif transfer == HLG:
        light = hlg_to_scene(codes)
    else:
        light = codes**GAMMA
    return light.astype(np.float32)


M1, M2 = 2610 / 16384, 2523 / 4096 * 128  # SMPTE ST 2084
C1, C2, C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def pq_to_light(codes: np.ndarray) -> np.ndarray:
    """EOTF of SMPTE ST 2084: code values in [0, 1] to cd/m2."""
    power = codes ** (1 / M2)
    return 10000 * (np.maximum(power - C1, 0) / (C2 - C3 * power)) ** (1 / M1)


def light_to_pq(light: np.ndarray) -> np.ndarray:
    """Inverse of `pq_to_light`."""
    power = (light / 10000) ** M1
    return ((C1 + C2 * power) / (1 + C3 * power)) ** M2


def hlg_to_scene(codes: np.ndarray) -> np.ndarray:
    """Inverse OETF of HLG (BT.2100 table 5): code values in [0, 1] to scene light in [0, 1]."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(codes <= 0.5, codes**2 / 3, (np.exp((codes - c) / a) + b) / 12)


def _hlg_display(scene: np.ndarray) -> np.ndarray:
    """OOTF of HLG (BT.2100 table 5): scene light to cd/m2."""
    luminance = np.clip(scene @ np.array([0.2627, 0.6780, 0.0593], np.float32), 0, 1)
    return _system_gamma()[_index(luminance)][..., None] * scene


def _tone_mapped(light: np.ndarray) -> np.ndarray:
    """Light in cd/m2 to light with 1 as white; the largest of R, G, B follows the curve."""
    largest = light.max(-1) * np.float32(1 / PEAK)
    return light * _gain()[_index(largest.clip(max=1))][..., None]


def tone_curve(codes: np.ndarray) -> np.ndarray:
    """EETF of Report BT.2390 section 5.4.1, on PQ code values, from `PEAK` to `WHITE`."""
    source, target = light_to_pq(np.array([PEAK, WHITE]))
    e, most = np.minimum(codes / source, 1), target / source
    knee = 1.5 * most - 0.5
    t = np.maximum(e - knee, 0) / (1 - knee)
    # A cubic Hermite spline: slope 1 at the knee, 0 at the peak.
    spline = (2 * t**3 - 3 * t**2 + 1) * knee
    spline += (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return np.where(e < knee, e, spline) * source


@cache
def _to_bt709(primaries: int) -> np.ndarray:
    """Matrix from linear RGB of some primaries to that of BT.709, both with white D65."""
    return (np.linalg.inv(_to_xyz(BT709)) @ _to_xyz(primaries)).astype(np.float32)


def _to_xyz(primaries: int) -> np.ndarray:
    """Matrix from linear RGB to CIE XYZ: columns are primaries, scaled so that RGB 1 is white."""
    x, y = np.array([*CHROMATICITIES[primaries], D65]).T
    xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y])
    return xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3])
