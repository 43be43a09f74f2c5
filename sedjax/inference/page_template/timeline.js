// The time axis: rows of classes, spectrogram and ticks; all show the part of the recording that is scrolled to.

const byId = id => document.getElementById(id);
const timeline = byId("timeline"), stage = byId("stage"), spectrogram = byId("spectrogram");
const axis = document.querySelector(".axis .track");
const TICKS_SECONDS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200];
const CLEAR_PIXELS_PER_SECOND = 18;  // with fewer, events are hard to hit
const MOST_PIXELS_PER_SECOND = 400;
const MOST_COLUMNS = 4096;  // of the picture that is scaled to the canvas

// What is shown: a recording, its spectrogram (bands of a frame together), its rows, and the scale.
const view = {recording: recordings[0], levels: new Uint8Array(0), lanes: [], zoom: 1, width: 1};
const palette = Uint8Array.from(atob(run.palette), character => character.charCodeAt(0));

const scale = () => view.width * view.zoom / view.recording.seconds;  // pixels per second
const startSeconds = () => timeline.scrollLeft / scale();
const spanSeconds = () => view.recording.seconds / view.zoom;
const pixelsAt = seconds => (seconds - startSeconds()) * scale();
const secondsAt = (track, event) => {
  const seconds = startSeconds() + (event.clientX - track.getBoundingClientRect().left) / scale();
  return Math.min(Math.max(seconds, 0), view.recording.seconds);
};

// Fits the rows to the window; the zoom is relative to the whole recording.
function layOut() {
  stage.style.width = `${timeline.clientWidth}px`;
  view.width = spectrogram.clientWidth;
  byId("stretch").style.width = `${timeline.clientWidth + view.width * (view.zoom - 1)}px`;
  stage.style.setProperty("--scale", scale());
  stage.style.setProperty("--width", view.width * view.zoom);
  byId("playhead").style.left = `${spectrogram.offsetLeft}px`;
  redraw();
}

// Sets the zoom; the time `anchor` stays where it is.
function zoomTo(zoom, anchor) {
  const before = pixelsAt(anchor);
  const most = Math.max(MOST_PIXELS_PER_SECOND * view.recording.seconds / view.width, 1);
  view.zoom = Math.min(Math.max(zoom, 1), most);
  layOut();
  timeline.scrollLeft = anchor * scale() - before;
}

function zoomBy(factor) {
  const now = audio.currentTime, isVisible = now >= startSeconds() && now <= startSeconds() + spanSeconds();
  zoomTo(view.zoom * factor, isVisible ? now : startSeconds() + spanSeconds() / 2);
}

function scrollToTime(seconds) {
  timeline.scrollLeft = Math.max(seconds, 0) * scale();
}

// Scrolls, if need be, to where a time is visible, or a span of it.
function reveal(seconds, end = seconds) {
  const isVisible = seconds >= startSeconds() && end <= startSeconds() + 0.95 * spanSeconds();
  if (!isVisible) scrollToTime(seconds - 0.1 * spanSeconds());
}

let isDue = false;
function redraw() {
  if (!isDue) requestAnimationFrame(() => {
    isDue = false;
    view.lanes.forEach(drawLane);
    drawSpectrogram();
    drawAxis();
    drawPlayhead();
  });
  isDue = true;
}

function drawPlayhead() {
  const x = pixelsAt(audio.currentTime);
  byId("playhead").style.transform = `translateX(${x}px)`;
  byId("playhead").hidden = x < 0 || x > view.width;
}

// An empty canvas in the size of its track.
function emptied(canvas) {
  const {clientWidth: width, clientHeight: height} = canvas, context = canvas.getContext("2d");
  canvas.width = width * devicePixelRatio;
  canvas.height = height * devicePixelRatio;
  context.scale(devicePixelRatio, devicePixelRatio);
  return {context, width, height};
}

// The frames that are visible, at least partly: [first, one past the last].
function visibleFrames(frames) {
  return [Math.max(Math.floor(startSeconds() / run.frameSeconds), 0),
          Math.min(Math.ceil((startSeconds() + spanSeconds()) / run.frameSeconds), frames)];
}

const colour = name => getComputedStyle(document.body).getPropertyValue(name);

// Probability and threshold of a class, behind its events.
function drawLane(lane) {
  lane.events.style.transform = `translateX(${-timeline.scrollLeft}px)`;
  const values = smoothed(view.recording, lane.label);
  if (!values.length || !lane.row.offsetParent) return;
  const {context, width, height} = emptied(lane.canvas), [first, end] = visibleFrames(values.length);
  const step = Math.max(Math.floor((end - first) / width), 1), bottom = height - 1;
  context.beginPath();
  context.moveTo(pixelsAt(first * run.frameSeconds), bottom);
  for (let t = first; t < end; t += step) {
    const y = bottom - values.subarray(t, Math.min(t + step, end)).reduce((a, b) => Math.max(a, b)) * (height - 2);
    context.lineTo(pixelsAt(t * run.frameSeconds), y);
    context.lineTo(pixelsAt((t + step) * run.frameSeconds), y);
  }
  context.lineTo(pixelsAt(end * run.frameSeconds), bottom);
  context.fillStyle = colour("--curve");
  context.fill();
  const y = Math.round(bottom - thresholds[lane.label] * (height - 2)) + 0.5;
  context.strokeStyle = colour("--muted");
  context.setLineDash([2, 3]);
  context.beginPath();
  context.moveTo(0, y);
  context.lineTo(width, y);
  context.stroke();
}

// The loudest of neighbouring frames where there is no room for all.
function drawSpectrogram() {
  const {context, width, height} = emptied(spectrogram.firstElementChild);
  const {bands} = run, [first, end] = visibleFrames(view.recording.frames);
  const step = Math.max(Math.ceil((end - first) / MOST_COLUMNS), 1), columns = Math.ceil((end - first) / step);
  if (columns < 1) return;
  const image = new ImageData(columns, bands);
  for (let column = 0; column < columns; column++)
    for (let band = 0; band < bands; band++) {
      let level = 0;
      for (let t = first + column * step; t < Math.min(first + (column + 1) * step, end); t++)
        level = Math.max(level, view.levels[t * bands + band]);
      const place = 4 * ((bands - 1 - band) * columns + column);
      image.data.set(palette.subarray(3 * level, 3 * level + 3), place);
      image.data[place + 3] = 255;
    }
  const picture = Object.assign(document.createElement("canvas"), {width: columns, height: bands});
  picture.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingQuality = "high";
  const left = pixelsAt(first * run.frameSeconds), right = pixelsAt((first + columns * step) * run.frameSeconds);
  context.drawImage(picture, left, 0, right - left, height);
  context.fillStyle = "#0008";
  context.strokeStyle = "#fff5";
  for (const [, height_] of run.frequencies) {
    const y = Math.round((1 - height_) * height) + 0.5;
    context.beginPath();
    context.moveTo(0, y);
    context.lineTo(5, y);
    context.stroke();
  }
}

function drawAxis() {
  const {context, width} = emptied(axis.firstElementChild);
  const tick = TICKS_SECONDS.find(seconds => seconds * scale() >= 64) ?? TICKS_SECONDS.at(-1);
  context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  context.fillStyle = context.strokeStyle = colour("--muted");
  for (let number = Math.ceil(startSeconds() / tick); pixelsAt(number * tick) <= width; number++) {
    const x = pixelsAt(number * tick), text = view.recording.seconds < 120
      ? `${Number((number * tick).toFixed(1))} s` : clock(number * tick, tick < 1 ? 1 : 0);
    context.fillRect(Math.round(x), 0, 1, 5);
    const textWidth = context.measureText(text).width;
    context.fillText(text, Math.min(Math.max(x - textWidth / 2, 0), width - textWidth), 18);
  }
}

// 3:05.2, or 1:03:05.2.
function clock(seconds, decimals) {
  const tenth = 10 ** decimals, rounded = Math.floor(seconds * tenth + 1e-6) / tenth;
  const pad = number => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(rounded / 3600), Math.floor(rounded / 60) % 60];
  const rest = (rounded % 60).toFixed(decimals).padStart(decimals ? decimals + 3 : 2, "0");
  return hours ? `${hours}:${pad(minutes)}:${rest}` : `${minutes}:${rest}`;
}
