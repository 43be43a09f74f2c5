"""The sounds of the built-in data set: each of the ten MLPC 2025 classes as a small physical model, and backgrounds."""

from collections.abc import Callable, Sequence

import numpy as np
import scipy.fft
import scipy.signal

from sedjax.core.task import SAMPLE_RATE_HZ

MILLISECOND_SAMPLES = SAMPLE_RATE_HZ // 1000  # events start and end on whole milliseconds, as in annotations.csv
VOWEL_FORMANTS_HZ = ((730, 1090, 2440), (530, 1840, 2480), (390, 1990, 2550), (570, 840, 2410), (440, 1020, 2240))

Rng = np.random.Generator


# Building blocks of sounds, (samples,) float64 at 16 kHz.


def _samples(seconds: float) -> int:
    return max(round(seconds * SAMPLE_RATE_HZ), 1)


def _rms_1(sound: np.ndarray) -> np.ndarray:
    return sound / np.sqrt(np.mean(sound**2))


def _curve(seconds: float, times: np.ndarray | Sequence[float],
           values: np.ndarray | Sequence[float]) -> np.ndarray:
    """Straight lines through `values` at `times`, fractions of the sound."""
    return np.interp(np.linspace(0, 1, _samples(seconds)), times, values)


def _wander(rng: Rng, seconds: float, rate_hz: float, depth: float) -> np.ndarray:
    """Random values around 1, a new one about `rate_hz` times per second, linearly interpolated; never negative."""
    points = int(seconds * rate_hz) + 2
    return np.maximum(_curve(seconds, np.linspace(0, 1, points), 1 + depth * rng.standard_normal(points)), 0)


def _noise(rng: Rng, seconds: float, exponent: float = 0.0, low_hz: float = 30, high_hz: float = 8000) -> np.ndarray:
    """Noise of RMS 1 whose power falls as 1 / f ** exponent between two edges, and by 12 dB per octave beyond them."""
    length = scipy.fft.next_fast_len(_samples(seconds), real=True)
    f = np.maximum(scipy.fft.rfftfreq(length, 1 / SAMPLE_RATE_HZ), 1)
    gain = f ** (-exponent / 2) * np.minimum(f / low_hz, 1) ** 2 * np.minimum(high_hz / f, 1) ** 2
    real, imaginary = gain * rng.standard_normal((2, len(f)))
    return _rms_1(scipy.fft.irfft(real + 1j * imaginary, length)[: _samples(seconds)])


def _tone(pitch_hz: np.ndarray, harmonics: int = 1, tilt: float = 0.0) -> np.ndarray:
    """Pulses of varying pitch, RMS about 1: harmonic k has amplitude k ** -tilt; none exceeds 8 kHz, so no aliasing."""
    size = 1 << 14
    amplitudes = np.arange(1.0, min(harmonics, int(SAMPLE_RATE_HZ / 2 / pitch_hz.max())) + 1) ** -tilt
    cycle = _rms_1(scipy.fft.irfft(np.pad(amplitudes, (1, 0)), size))
    return cycle[(np.cumsum(pitch_hz / SAMPLE_RATE_HZ) % 1 * size).astype(np.intp)]


def _resonate(sound: np.ndarray, frequencies_hz: np.ndarray | Sequence[float], bandwidth: float,
              dry: float = 0.0) -> np.ndarray:
    """Parallel resonators, `bandwidth` a fraction of their frequency, plus `dry` times the sound itself."""
    result = dry * sound
    for frequency in frequencies_hz:
        radius = np.exp(-np.pi * bandwidth * frequency / SAMPLE_RATE_HZ)
        poles = [1, -2 * radius * np.cos(2 * np.pi * frequency / SAMPLE_RATE_HZ), radius**2]
        result = result + scipy.signal.lfilter([1 - radius, 0, radius - 1], poles, sound)
    return result


def _fade(sound: np.ndarray, attack_seconds: float, release_seconds: float) -> np.ndarray:
    """Raised-cosine fade-in and fade-out, each at most half of the sound."""
    envelope = np.ones(len(sound))
    for edge, seconds in ((envelope, attack_seconds), (envelope[::-1], release_seconds)):
        length = min(_samples(seconds), len(sound) // 2)
        edge[:length] *= 0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / length)
    return sound * envelope


def _repeat(sound: Callable[[], np.ndarray], gap: Callable[[], float], seconds: float, most: int = 1000) -> np.ndarray:
    """Up to `most` sounds with gaps (seconds) between them, as many as fit; starts and ends with a sound."""
    parts = [sound()]
    for _ in range(most - 1):
        following = [np.zeros(_samples(gap())), sound()]
        if sum(map(len, parts + following)) > _samples(seconds):
            break
        parts += following
    return np.concatenate(parts)[: _samples(seconds)]


# The classes: (rng, maximum seconds) -> a sound of any level, audible from the first sample to the last.


def _voice(rng: Rng, seconds: float, pitch_hz: float, vowel_seconds: tuple[float, float], tilt: float, rise: float,
           pause_odds: float) -> np.ndarray:
    """Glottal pulses through the formants of one random vowel per syllable, consonants before it, pauses between."""
    tract = rng.uniform(0.95, 1.2)  # shorter vocal tracts have higher formants

    def syllable():
        length = rng.uniform(*vowel_seconds)
        pitch = pitch_hz * rng.uniform(0.85, 1.15) * _curve(length, (0, 0.35, 1), (1, 1 + rise, 0.9))
        source = _tone(pitch * _wander(rng, length, 30, 0.008), 40, tilt) + 0.05 * _noise(rng, length)
        vowel = _resonate(source, tract * np.array(rng.choice(VOWEL_FORMANTS_HZ)), 0.12)
        consonant = _fade(_noise(rng, rng.uniform(0.03, 0.09), -0.5, rng.uniform(1500, 4000)), 0.01, 0.02)
        return np.concatenate([rng.uniform(0.02, 0.15) * consonant, rng.uniform(0.6, 1) * _fade(vowel, 0.03, 0.06)])

    return _repeat(syllable, lambda: rng.uniform(0.15, 0.45) if rng.random() < pause_odds else 0.01, seconds)


def _speech(rng: Rng, seconds: float) -> np.ndarray:
    """Talking: 3 to 6 syllables per second at 85 to 250 Hz, soft spectrum, pauses between phrases."""
    return _voice(rng, seconds, 85 * 2.9 ** rng.random(), (0.1, 0.26), tilt=1.3, rise=0.08, pause_odds=0.18)


def _shout(rng: Rng, seconds: float) -> np.ndarray:
    """Shouting: long vowels at 260 to 520 Hz that rise and fall, tense spectrum (strong upper harmonics)."""
    return _voice(rng, seconds, 260 * 2 ** rng.random(), (0.4, 1.1), tilt=0.35, rise=0.3, pause_odds=0.7)


def _chainsaw(rng: Rng, seconds: float) -> np.ndarray:
    """Two-stroke engine: one explosion per turn, 80 to 180 Hz, varying throttle, rough, with rasping chain noise."""
    points = max(int(seconds * rng.uniform(1, 2.5)), 3)
    throttle = _curve(seconds, np.linspace(0, 1, points), rng.choice([0.5, 0.75, 1, 1], points))
    pitch = np.clip(rng.uniform(120, 180) * throttle * _wander(rng, seconds, 40, 0.008), 80, 180)
    engine = _tone(pitch, 60, 0.45) * _wander(rng, seconds, 60, 0.2)
    engine = _resonate(engine, rng.uniform([900, 2400], [1600, 3800]), 0.4, dry=0.3)
    rasp = _noise(rng, seconds, 0, 1500, 6000) * np.maximum(_tone(pitch, 6, 0.5), 0)
    return (_rms_1(engine) + rng.uniform(0.3, 0.7) * rasp) * throttle


def _jackhammer(rng: Rng, seconds: float) -> np.ndarray:
    """Pneumatic hammer: 15 to 30 blows per second, each a thump, a burst of noise and metal ringing for some ms."""
    gaps = 1 / rng.uniform(15, 30) * (1 + 0.03 * rng.standard_normal(int(35 * seconds)))
    blows = np.zeros(_samples(seconds))
    times = ((np.cumsum(gaps) - gaps[0]) * SAMPLE_RATE_HZ).astype(np.intp)
    times = times[times < len(blows)]
    blows[times] = 1 + 0.2 * rng.uniform(-1, 1, len(times))
    t = np.arange(_samples(0.12)) / SAMPLE_RATE_HZ
    modes_hz, decays, loudness = rng.uniform([[600], [40], [0.3]], [[5500], [250], [1]], (3, 7))[:, :, None]
    rings = np.sum(loudness * np.sin(2 * np.pi * modes_hz * t) * np.exp(-decays * t), axis=0)
    thump = 1.5 * np.sin(2 * np.pi * rng.uniform(70, 130) * t) * np.exp(-50 * t)
    burst = rng.standard_normal(len(t)) * np.exp(-rng.uniform(80, 200) * t)
    hammer = scipy.signal.oaconvolve(blows, rings + thump + burst)[: len(blows)]
    return _rms_1(hammer) + rng.uniform(0.05, 0.2) * _noise(rng, seconds, 0.5, 500, 5000)


def _lawn_mower(rng: Rng, seconds: float) -> np.ndarray:
    """Four-stroke engine held at 40 to 60 explosions per second, muffled, with a blade whoosh twice as often."""
    pitch = rng.uniform(40, 60) * _wander(rng, seconds, 3, 0.006)
    muffler = rng.uniform([90, 250], [180, 500])
    engine = _resonate(_tone(pitch, 80, 0.8), muffler, 0.5, dry=0.15) * _wander(rng, seconds, 40, 0.1)
    blade = _noise(rng, seconds, 0.6, 300, 2500) * (1 + rng.uniform(0.3, 0.7) * _tone(2 * pitch))
    return _rms_1(engine) + rng.uniform(0.3, 0.6) * blade


def _power_drill(rng: Rng, seconds: float) -> np.ndarray:
    """Electric motor: a whine of 300 to 900 Hz that runs up and down, slows under load, and grinds its gears."""
    ramp = min(rng.uniform(0.15, 0.5) / seconds, 0.4)
    speed = _curve(seconds, (0, ramp, 1 - ramp, 1), (0.35, 1, 1, 0.4)) * _wander(rng, seconds, rng.uniform(1, 3), 0.05)
    pitch = np.clip(rng.uniform(330, 900) * speed, 100, 900)
    whine = _tone(pitch, 25, rng.uniform(0.4, 1))
    teeth = 1 + rng.uniform(0.2, 0.5) * _tone(pitch / rng.uniform(6, 12), 2)  # sidebands around every harmonic
    return (whine * teeth + rng.uniform(0.15, 0.5) * _noise(rng, seconds, 0, 2000, 6000) * speed) * speed


def _dog_bark(rng: Rng, seconds: float) -> np.ndarray:
    """A group of barks: bursts of 80 to 220 ms, half harmonic, half noise, whose pitch falls after a short attack."""
    pitch_hz, mouth = rng.uniform(280, 800), rng.uniform([600, 1400], [1100, 2200])

    def bark():
        length = rng.uniform(0.08, 0.22)
        pitch = pitch_hz * rng.uniform(0.9, 1.1) * _curve(length, (0, 0.15, 1), (0.8, 1.1, 0.5))
        throat = _tone(pitch, 12, 0.5) + rng.uniform(0.4, 0.9) * _noise(rng, length, 0.5, 400, 5000)
        return _fade(_resonate(throat, mouth, 0.35, dry=0.2) * _curve(length, (0, 0.2, 1), (0.6, 1, 0.3)), 0.01, 0.05)

    return _repeat(bark, lambda: rng.uniform(0.12, 0.4), seconds)


def _rooster_crow(rng: Rng, seconds: float) -> np.ndarray:
    """Cock-a-doodle-doo: two short notes, a middle one, then the long one that peaks at 800 to 1200 Hz and droops."""
    times = (0, 0.10, 0.13, 0.16, 0.25, 0.28, 0.31, 0.42, 0.45, 0.50, 0.75, 1)
    pitch = _curve(seconds, times, (0.55, 0.7, 0.7, 0.65, 0.75, 0.75, 0.7, 0.8, 0.85, 1, 0.95, 0.5))
    loudness = _curve(seconds, times, (0.5, 0.7, 0, 0.7, 0.7, 0, 0.8, 0.8, 0.1, 1, 1, 0.4))
    throat = _tone(rng.uniform(800, 1200) * pitch * _wander(rng, seconds, 25, 0.01), 9, 0.2)
    throat = throat * _wander(rng, seconds, 60, 0.2) + 0.1 * _noise(rng, seconds, 0, 1000, 5000)
    return _resonate(throat, rng.uniform([1400, 2600], [2200, 3600]), 0.4, dry=0.3) * loudness


def _horn_honk(rng: Rng, seconds: float) -> np.ndarray:
    """Car horn: two steel discs a third apart, steady and rich in harmonics, blown one to three times."""
    low, ratio, tilt = rng.uniform(320, 480), rng.uniform(1.18, 1.28), rng.uniform(0.2, 0.6)

    def honk():
        length = rng.uniform(0.15, max(0.3, 0.6 * seconds))
        chord = sum(_tone(np.full(_samples(length), disc), 16, tilt) for disc in (low, low * ratio))
        return _fade(_resonate(chord, (1900, 2800), 0.5, dry=0.4), 0.015, 0.03)

    return _repeat(honk, lambda: rng.uniform(0.08, 0.35), seconds, most=int(rng.integers(1, 4)))


def _siren(rng: Rng, seconds: float) -> np.ndarray:
    """Siren: one oscillator that sweeps slowly (wail), sweeps fast (yelp) or alternates between two pitches (hi-lo)."""
    up_down, alternate = ((0, 0.6, 1), (0, 1, 0)), ((0, 0.48, 0.5, 0.98, 1), (0, 0, 1, 1, 0))
    period, ratio, shape = ((rng.uniform(2, 5), 2.2, up_down), (rng.uniform(0.22, 0.4), 2, up_down),
                            (rng.uniform(0.8, 1.4), 1.33, alternate))[rng.integers(3)]
    sweep = np.interp((np.arange(_samples(seconds)) / SAMPLE_RATE_HZ / period + rng.random()) % 1, *shape)
    pitch = rng.uniform(450, 700) * (ratio * rng.uniform(0.95, 1.05)) ** sweep
    return _tone(pitch, 12, rng.uniform(0.8, 1.4)) * _wander(rng, seconds, 2, 0.15)


# Per class: its sound, the relative odds of its events (uneven, as in reality), the shortest and longest event in
# seconds, and its gain relative to other classes in dB.
SOURCES = {
    "Speech": (_speech, 4.0, (1.5, 5), 0),
    "Shout": (_shout, 2.9, (0.6, 2.8), 4),
    "Chainsaw": (_chainsaw, 1.5, (2, 6), 2),
    "Jackhammer": (_jackhammer, 1.9, (1.5, 6), 2),
    "Lawn Mower": (_lawn_mower, 1.7, (3, 8), 0),
    "Power Drill": (_power_drill, 2.9, (1, 4.5), 0),
    "Dog Bark": (_dog_bark, 4.4, (0.3, 3), 0),
    "Rooster Crow": (_rooster_crow, 2.2, (1.2, 2.4), 0),
    "Horn Honk": (_horn_honk, 3.6, (0.5, 4), 2),
    "Siren": (_siren, 2.1, (2.5, 7), 0),
}


def render(label: str, rng: Rng, seconds: float) -> np.ndarray:
    """One event of a class: (samples,) of RMS 1, a whole number of milliseconds, at most `seconds`."""
    sound = SOURCES[label][0](rng, seconds)
    sound = scipy.signal.lfilter([1], [1, -rng.uniform(0, 0.6)], sound)  # air and walls absorb high frequencies
    return _rms_1(_fade(sound[: len(sound) // MILLISECOND_SAMPLES * MILLISECOND_SAMPLES], 0.005, 0.01))


def render_background(rng: Rng, seconds: float) -> np.ndarray:
    """Pink to brown noise with gusts of wind and, in two out of five recordings, mains hum: (samples,) of RMS 1."""
    gusts = _wander(rng, seconds, 0.7, 0.5) ** 2 * _noise(rng, seconds, 2, 30, 300)
    sound = _noise(rng, seconds, rng.uniform(0.8, 1.8)) + rng.uniform(0, 0.6) * gusts
    if rng.random() < 0.4:
        sound += rng.uniform(0.1, 0.5) * _tone(np.full(_samples(seconds), 50.0), 12, rng.uniform(0.5, 1.5))
    return _rms_1(sound)
