"use strict";
// Recordings, and their events: from frame probabilities as in sedjax/scoring/event_rules.py, and by hand.

const run = JSON.parse(document.getElementById("run").textContent);
const {classes, rules} = run;
const thresholds = [...rules.thresholds];
const recordings = [...document.querySelectorAll("script.recording")].map(readRecording);

// A recording, with the probabilities of the classes that are ever likely; the other classes have no events.
function readRecording(element, index) {
  const recording = {index, ...JSON.parse(element.textContent), probabilities: new Map(), smooth: new Map(),
                     detected: new Map(), own: [], checked: false};
  const values = new Float32Array(bytes("probabilities", recording).buffer);
  recording.likely.forEach((label, place) =>
    recording.probabilities.set(label, values.subarray(place * recording.frames, (place + 1) * recording.frames)));
  return recording;
}

// The bytes of one kind of data: "probabilities", "spectrogram" or "audio".
function bytes(kind, recording) {
  const text = atob(document.querySelectorAll(`script.${kind}`)[recording.index].textContent);
  const result = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) result[i] = text.charCodeAt(i);
  return result;
}

// The median of every `length` neighbours, an odd number; the ends are repeated beyond themselves.
function medianFiltered(values, length) {
  if (length <= 1) return values;
  const half = (length - 1) / 2, window = new Float32Array(length);
  return values.map((_, t) => {
    for (let k = 0; k < length; k++) window[k] = values[Math.min(Math.max(t + k - half, 0), values.length - 1)];
    return window.sort()[half];
  });
}

function smoothed(recording, label) {
  if (!recording.probabilities.has(label)) return new Float32Array(0);
  if (!recording.smooth.has(label))
    recording.smooth.set(label, medianFiltered(recording.probabilities.get(label), rules.medianFrames[label]));
  return recording.smooth.get(label);
}

// find_events for one class: [first frame, one past the last] of each event.
function findEvents(smooth, label) {
  const threshold = Math.fround(thresholds[label]);  // compared with float32, as in Python
  const low = Math.min(Math.fround(rules.lowThresholds[label]), threshold), events = [];
  for (let t = 0; t < smooth.length; t++) {
    if (!(smooth[t] > low)) continue;
    const first = t;
    let isEvent = false;
    for (; t < smooth.length && smooth[t] > low; t++) isEvent ||= smooth[t] > threshold;
    if (!isEvent) continue;
    const last = events.at(-1);
    if (last && first - last[1] <= rules.gapFrames[label]) last[1] = t;
    else events.push([first, t]);
  }
  return events.filter(([first, end]) => end - first >= rules.shortestFrames[label]);
}

// The events of a class at its present threshold, as `sedjax predict` writes them.
function detectedEvents(recording, label) {
  const known = recording.detected.get(label);
  if (known?.threshold === thresholds[label]) return known.events;
  const seconds = frame => Number(Math.min(frame * run.frameSeconds, recording.seconds).toFixed(7));
  const events = findEvents(smoothed(recording, label), label).map(([first, end]) => ({
    label, onset: seconds(first), offset: seconds(end), verdict: "", drawn: false,
    score: recording.probabilities.get(label).subarray(first, end).reduce((a, b) => Math.max(a, b))}));
  recording.detected.set(label, {threshold: thresholds[label], events});
  return events;
}

// All events of a class by onset: own ones (marked or drawn), and those detected that do not overlap them.
function eventsOf(recording, label) {
  const own = recording.own.filter(event => event.label === label);
  const isFree = event => !own.some(other => other.onset < event.offset && event.onset < other.offset);
  return [...own, ...detectedEvents(recording, label).filter(isFree)].sort((a, b) => a.onset - b.onset);
}

// The events that count as labels: all but those marked as false, by onset.
function labelsOf(recording) {
  return classes.flatMap((_, label) => eventsOf(recording, label)).filter(event => event.verdict !== "false")
    .sort((a, b) => a.onset - b.onset);
}

// The labels of the checked recordings as a table; a recording without any has one row.
function labelTable() {
  const rows = recordings.filter(recording => recording.checked).flatMap(recording => {
    const labels = labelsOf(recording);
    return labels.length ? labels.map(({onset, offset, label}) =>
      [recording.name, secondsText(onset), secondsText(offset), classes[label]]) : [[recording.name, "", "", ""]];
  });
  const header = ["filename", "onset", "offset", "event_label"];
  return [header, ...rows].map(row => row.map(quoted).join("\t") + "\n").join("");
}

// As Python's csv module writes a field.
function quoted(text) {
  return /["\t\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// Seconds with three decimals, or as many as it takes to be exact.
function secondsText(seconds) {
  return seconds.toFixed(7).replace(/0{1,4}$/, "");
}
