// What a person does: choosing recordings, playing, moving thresholds, judging and drawing events, saving labels.

const audio = byId("audio");
const DRAG_PIXELS = 4;  // a shorter drag is a click
const NEW_SECONDS = 1;
const DECIMALS = 100;  // events drawn by hand begin and end at hundredths of a second
let selected = null;  // an event of view.recording
let stopSeconds = Infinity;  // where playing an event alone ends
const STORED = `sedjax ${JSON.parse(byId("digest").textContent)}`;  // of this page, not of others on the same server
let lastClass = 0;  // of new events made with a button or key

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Recordings

function openRecording(recording) {
  view.recording = recording;
  view.levels = bytes("spectrogram", recording);
  URL.revokeObjectURL(audio.src);
  stopSeconds = Infinity;
  audio.src = URL.createObjectURL(new Blob([bytes("audio", recording)], {type: "audio/mpeg"}));
  audio.playbackRate = audio.defaultPlaybackRate = Number(byId("speed").value);
  byId("name").textContent = recording.name;
  byId("seek").max = recording.seconds;
  byId("list").classList.remove("shown");
  byId("show-list").setAttribute("aria-expanded", false);
  showLanes();
  select(null);
  view.zoom = 1;
  layOut();
  zoomTo(CLEAR_PIXELS_PER_SECOND / scale(), 0);
  showList();
  showTime();
}

function showList() {
  for (const recording of recordings) {
    const count = labelsOf(recording).length, time = clock(recording.seconds, 0);
    recording.button.ariaCurrent = recording === view.recording;
    recording.details.textContent = `${time} · ${count} event${count === 1 ? "" : "s"}`;
    recording.mark.hidden = !recording.checked;
  }
  const checked = recordings.filter(recording => recording.checked).length;
  byId("summary").textContent = `${checked} of ${recordings.length} checked`;
  byId("save").disabled = !checked;
  byId("checked").checked = view.recording.checked;
  const changed = classes.flatMap((name, label) =>
    thresholds[label] === rules.thresholds[label] ? [] : [`${name}=${thresholds[label]}`]);
  byId("flags").textContent = `--threshold="${changed.join(",")}"`;
  byId("flags-line").hidden = byId("reset").disabled = !changed.length;
}

// Rows: one for each class with events, or for all, if the name contains the text of the filter.
function showLanes() {
  const text = byId("filter").value.trim().toLowerCase(), all = byId("show-silent").checked || text;
  const labels = [...classes.keys()].filter(label => classes[label].toLowerCase().includes(text)
    && (all || eventsOf(view.recording, label).length));
  view.lanes = labels.map(makeLane);
  byId("lanes").replaceChildren(...view.lanes.map(lane => lane.row));
  byId("no-lanes").hidden = labels.length > 0;
  view.lanes.forEach(showEvents);
  redraw();
}

function makeLane(label) {
  const name = make("label", {className: "name", textContent: classes[label], title: classes[label],
                              htmlFor: `threshold-${label}`});
  const value = make("output", {htmlFor: `threshold-${label}`});
  const slider = make("input", {type: "range", id: `threshold-${label}`, min: run.lowestThreshold,
                                max: 1 - run.lowestThreshold, step: 0.01, value: thresholds[label]});
  slider.setAttribute("aria-label", `Threshold of ${classes[label]}`);
  slider.disabled = !view.recording.probabilities.has(label);
  const canvas = make("canvas"), events = make("div", {className: "events", role: "group",
                                                       ariaLabel: `Events of ${classes[label]}`});
  const track = make("div", {className: "track"}, canvas, events);
  const row = make("div", {className: "row lane"}, make("div", {className: "head"}, name, value, slider), track);
  const lane = {label, row, slider, value, canvas, events, track};
  slider.addEventListener("input", () => setThreshold(lane, Number(slider.value)));
  slider.addEventListener("change", showList);  // the counts of all recordings, not while the slider moves
  slider.addEventListener("focus", () => { lastClass = label; });
  drawByHand(lane);
  return lane;
}

function setThreshold(lane, value) {
  thresholds[lane.label] = value;
  showEvents(lane);
  select(selected);
  redraw();
  store();
}

function showEvents(lane) {
  const focused = lane.events.contains(document.activeElement);
  const events = eventsOf(view.recording, lane.label);
  lane.value.textContent = Number(thresholds[lane.label].toFixed(4));
  lane.slider.value = thresholds[lane.label];
  lane.events.replaceChildren(...events.map(eventButton));
  if (focused) lane.events.querySelector(".selected")?.focus({preventScroll: true});
}

function eventButton(event) {
  const {label, onset, offset, score, verdict, drawn} = event;
  const texts = [classes[label], `${secondsText(onset)} to ${secondsText(offset)} s`,
                 drawn ? "drawn by hand" : `score ${score.toFixed(2)}`];
  if (verdict && !drawn) texts.push(`marked ${verdict}`);
  const button = make("button", {className: `event ${verdict} ${drawn ? "drawn" : ""}`, title: texts.join(", "),
                                 ariaLabel: texts.join(", ")});
  button.style.setProperty("--onset", onset);
  button.style.setProperty("--seconds", offset - onset);
  if (isSame(event, selected)) button.classList.add("selected");
  button.addEventListener("focus", () => { select(event); reveal(event.onset, event.offset); });
  button.addEventListener("click", () => { select(event); seek(event.onset); reveal(event.onset, event.offset); });
  return button;
}

const isSame = (a, b) => a?.label === b?.label && a?.onset === b?.onset && a?.offset === b?.offset;

// Judging events

// Selects an event, or none if there is no such event any more.
function select(event) {
  selected = event && eventsOf(view.recording, event.label).find(other => isSame(other, event)) || null;
  byId("hint").hidden = Boolean(selected);
  byId("fields").hidden = !selected;
  for (const lane of view.lanes)
    eventsOf(view.recording, lane.label).forEach((other, place) =>
      lane.events.children[place].classList.toggle("selected", other === selected));
  if (!selected) return;
  lastClass = selected.label;
  byId("event-class").value = selected.label;
  byId("onset").value = Number(selected.onset.toFixed(3));
  byId("offset").value = Number(selected.offset.toFixed(3));
  byId("score").textContent = selected.drawn ? "by hand" : `score ${selected.score.toFixed(2)}`;
  for (const verdict of ["true", "false"]) byId(verdict).ariaPressed = selected.verdict === verdict;
  byId("remove").disabled = !view.recording.own.includes(selected);
  byId("remove").textContent = selected.drawn ? "Delete" : "Undo";
}

// Puts `event` in place of `old` and of the own events that it overlaps. Without `event`, `old` is dropped.
function replace(old, event, message) {
  const {recording} = view;
  recording.own = recording.own.filter(other => other !== old && !(event && other.label === event.label
    && other.onset < event.offset && event.onset < other.offset));
  if (event) recording.own.push(event);
  recording.checked = true;
  const missing = event && !view.lanes.some(lane => lane.label === event.label);
  if (missing) showLanes();
  selected = event ?? old;
  view.lanes.filter(lane => [old?.label, event?.label].includes(lane.label)).forEach(showEvents);
  select(selected);
  byId("status").textContent = message;
  showList();
  store();
}

function judge(verdict) {
  if (!selected) return;
  if (selected.verdict !== verdict) replace(selected, {...selected, verdict}, `Marked ${verdict}.`);
  else if (!selected.drawn) replace(selected, null, "Not marked.");
}

function remove() {
  if (view.recording.own.includes(selected)) replace(selected, null, selected.drawn ? "Deleted." : "Not marked.");
}

function draw(label, onset, offset, old = null) {
  const rounded = seconds => Math.min(Math.round(seconds * DECIMALS) / DECIMALS, view.recording.seconds);
  const event = {label, onset: rounded(onset), offset: rounded(offset), score: 1, verdict: "true", drawn: true};
  if (event.onset < event.offset) replace(old, event, `${classes[label]} drawn.`);
  else select(selected);  // shows the old values again
}

function drawAtPlayhead() {
  const onset = Math.min(audio.currentTime, Math.max(view.recording.seconds - NEW_SECONDS, 0));
  draw(lastClass, onset, onset + NEW_SECONDS);
  document.querySelector(".event.selected")?.focus();
}

// A wrong class is one false event and one true event.
function reclassify(label) {
  const {onset, offset} = selected, old = selected;
  if (!old.drawn) replace(old, {...old, verdict: "false"}, "");
  draw(label, onset, offset, old.drawn ? old : null);
}

// Dragging across a row draws an event, clicking moves the playhead.
function drawByHand({label, track}) {
  let from = null, draft = null;
  track.addEventListener("pointerdown", event => {
    if (event.button || event.target.closest(".event")) return;
    from = event.clientX;
    track.setPointerCapture(event.pointerId);
  });
  track.addEventListener("pointermove", event => {
    if (from === null || !draft && Math.abs(event.clientX - from) < DRAG_PIXELS) return;
    if (!draft) track.append(draft = make("div", {className: "draft"}));
    const [left, right] = [from, event.clientX].sort((a, b) => a - b);
    draft.style.left = `${left - track.getBoundingClientRect().left}px`;
    draft.style.width = `${right - left}px`;
  });
  track.addEventListener("pointerup", event => {
    if (from === null) return;
    const [first, last] = [{clientX: from}, event].map(end => secondsAt(track, end)).sort((a, b) => a - b);
    if (draft) draw(label, first, last);
    else seek(first);
    end();
  });
  const end = () => { draft?.remove(); from = draft = null; };
  track.addEventListener("pointercancel", end);
}

// Playing

function toggle() {
  stopSeconds = Infinity;
  if (audio.paused) audio.play();
  else audio.pause();
}

function listen() {
  if (!selected) return;
  seek(selected.onset);
  stopSeconds = selected.offset;
  audio.play();
}

function seek(seconds) {
  stopSeconds = Infinity;
  audio.currentTime = Math.min(Math.max(seconds, 0), view.recording.seconds);
  reveal(audio.currentTime);
  showTime();
}

function showTime() {
  const now = audio.currentTime, text = `${clock(now, 1)} / ${clock(view.recording.seconds, 1)}`;
  byId("clock").textContent = text;
  byId("seek").value = now;
  byId("seek").setAttribute("aria-valuetext", text);
  byId("play").ariaLabel = audio.paused ? "Play" : "Pause";
  byId("play").classList.toggle("playing", !audio.paused);
  for (const {row, label} of view.lanes)
    row.classList.toggle("sounding", eventsOf(view.recording, label).some(event =>
      event.verdict !== "false" && event.onset <= now && now < event.offset));
  drawPlayhead();
}

function follow() {
  if (audio.currentTime >= stopSeconds) {
    audio.pause();
    stopSeconds = Infinity;
  }
  reveal(audio.currentTime);
  showTime();
  if (!audio.paused) requestAnimationFrame(follow);
}

// Saving

function save() {
  const link = make("a", {href: URL.createObjectURL(new Blob([labelTable()], {type: "text/tab-separated-values"})),
                          download: "labels.tsv"});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// The work survives a reload of the page; where the browser stores nothing, it asks before it leaves the page.
function store() {
  const work = {thresholds, recordings: recordings.map(({own, checked}) => ({own, checked}))};
  try {
    localStorage.setItem(STORED, JSON.stringify(work));
  } catch {
    window.onbeforeunload = () => true;
  }
}

function restore() {
  try {
    const work = JSON.parse(localStorage.getItem(STORED));
    work?.thresholds.forEach((threshold, label) => { thresholds[label] = threshold; });
    work?.recordings.forEach((part, index) => Object.assign(recordings[index], part));
  } catch { /* nothing is stored */ }
}

// Controls

const KEYS = {
  " ": toggle, p: listen, t: () => judge("true"), f: () => judge("false"), n: drawAtPlayhead, Delete: remove,
  Backspace: remove, ArrowLeft: ({shiftKey}) => seek(audio.currentTime - (shiftKey ? 5 : 1)),
  ArrowRight: ({shiftKey}) => seek(audio.currentTime + (shiftKey ? 5 : 1)), Home: () => seek(0),
  End: () => seek(view.recording.seconds), "+": () => zoomBy(2), "=": () => zoomBy(2), "-": () => zoomBy(0.5),
  0: () => zoomTo(1, 0)};

document.addEventListener("keydown", event => {
  const {target, key} = event, action = KEYS[key.length === 1 ? key.toLowerCase() : key];
  if (!action || event.ctrlKey || event.altKey || event.metaKey) return;
  if (target.matches("input:not([type=range], [type=checkbox]), select")) return;
  const has = [" ", ...target.matches("[type=range]") ? ["ArrowLeft", "ArrowRight", "Home", "End"] : []];
  if (has.includes(key) && target.matches("[type=checkbox], button:not(.event), summary, [type=range]")
    && !(key === " " && target.matches("[type=range]"))) return;
  event.preventDefault();
  action(event);
});
document.addEventListener("keyup", event => {  // Firefox clicks a button when the space bar is released
  if (event.key === " " && event.target.matches(".event")) event.preventDefault();
});

for (const [id, action] of Object.entries({
  play: toggle, listen, true: () => judge("true"), false: () => judge("false"), remove, new: drawAtPlayhead, save,
  "zoom-in": () => zoomBy(2), "zoom-out": () => zoomBy(0.5), "zoom-fit": () => zoomTo(1, 0)}))
  byId(id).addEventListener("click", action);
for (const [id, action] of Object.entries({
  speed: ({target}) => { audio.playbackRate = audio.defaultPlaybackRate = Number(target.value); },
  onset: ({target}) => draw(selected.label, target.valueAsNumber, selected.offset, selected),
  offset: ({target}) => draw(selected.label, selected.onset, target.valueAsNumber, selected),
  "event-class": ({target}) => reclassify(Number(target.value)),
  "show-silent": showLanes,
  checked: ({target}) => { view.recording.checked = target.checked; showList(); store(); }}))
  byId(id).addEventListener("change", action);
byId("filter").addEventListener("input", showLanes);
byId("seek").addEventListener("input", ({target}) => seek(Number(target.value)));
byId("reset").addEventListener("click", () => {
  rules.thresholds.forEach((threshold, label) => { thresholds[label] = threshold; });
  showLanes();
  select(selected);
  showList();
  store();
});
byId("show-list").addEventListener("click", ({target}) =>
  target.setAttribute("aria-expanded", byId("list").classList.toggle("shown")));
spectrogram.addEventListener("click", event => seek(secondsAt(spectrogram, event)));
timeline.addEventListener("scroll", redraw);
timeline.addEventListener("wheel", event => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  zoomTo(view.zoom * 1.01 ** -event.deltaY, secondsAt(spectrogram, event));
}, {passive: false});
for (const type of ["play", "pause", "ended"]) audio.addEventListener(type, follow);
audio.addEventListener("seeked", showTime);
new ResizeObserver(layOut).observe(timeline);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

// Start

restore();
for (const recording of recordings) {
  recording.details = make("span", {className: "details"});
  recording.mark = make("span", {className: "mark", textContent: "✓", ariaLabel: "checked"});
  recording.button = make("button", {}, make("span", {className: "file", textContent: recording.name}),
                          recording.details, recording.mark);
  recording.button.addEventListener("click", () => openRecording(recording));
  byId("recordings").append(make("li", {}, recording.button));
}
classes.forEach((name, label) => byId("event-class").append(make("option", {value: label, textContent: name})));
for (const [hertz, height] of run.frequencies) {
  const textContent = hertz < 1000 ? `${hertz} Hz` : `${hertz / 1000} kHz`;
  const text = make("span", {className: "frequency", textContent});
  text.style.setProperty("--height", height);
  document.querySelector(".spectrogram").append(text);
}
const legend = document.querySelector("#legend canvas").getContext("2d"), shades = legend.createImageData(64, 1);
for (let x = 0; x < 64; x++) shades.data.set([...palette.subarray(12 * x, 12 * x + 3), 255], 4 * x);
legend.putImageData(shades, 0, 0);
byId("show-silent").checked = classes.length <= run.mostRows && innerWidth > 900;  // as in style.css
if (recordings.length) openRecording(recordings[0]);
else byId("name").textContent = "There are no recordings here.";
