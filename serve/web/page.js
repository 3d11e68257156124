// The page: sends a picture or a video to the API of this service, and draws what it answers.

const $ = (id) => document.getElementById(id);
const LOW = 60;
let shown = 0; // number of the newest request: an older one that answers late is not drawn
let objectUrl = null;
let newest = new AbortController();

const element = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const svg = (name, attributes = {}, text = null) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  return node;
};
const words = (name) => name.replaceAll("_", " ").replace("color", "colour");
const one = (value) => value.toFixed(1);

function headers() {
  const key = $("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function askService() {
  const answer = await fetch("/v1/service", { headers: headers() });
  if (answer.status === 401) {
    $("models").textContent = "an API key is needed";
    $("settings").open = true;
    return;
  }
  if (!answer.ok) throw new Error(await problem(answer));
  const info = await answer.json();
  $("models").textContent = info.models.length
    ? info.models.map((model) => `${model.task} v${model.version}${model.role === "champion" ? "" : " (" + model.role + ")"}`).join(" · ")
    : "no scorer is ready yet";
  const mib = (bytes) => `${Math.round(bytes / 2 ** 20)} MiB`;
  $("limits").textContent = `JPEG, PNG, WebP up to ${mib(info.limits.max_image_bytes)}; videos up to ` +
    `${mib(info.limits.max_video_bytes)} and ${Math.round(info.limits.max_duration_s / 60)} min`;
}

async function problem(answer) {
  try {
    const told = await answer.json();
    const wait = answer.headers.get("Retry-After");
    return `${told.detail} (${told.code}${wait ? `, try again in ${wait} s` : ""})`;
  } catch {
    return `the service answered ${answer.status}`;
  }
}

function say(text, { bad = false, waiting = false } = {}) {
  const line = $("status");
  line.textContent = text;
  line.className = `status${bad ? " bad" : ""}${waiting ? " waiting" : ""}`;
}

async function score(file) {
  const number = ++shown;
  newest.abort(); // whoever chooses another file waits for that one
  newest = new AbortController();
  const isVideo = file.type.startsWith("video/") || /\.(mp4|mov|mkv|webm|avi|m4v)$/i.test(file.name);
  say(`scoring ${file.name} …`, { waiting: true });
  const query = new URLSearchParams({ several_people: $("people").value });
  if ($("model").value) query.set("model", $("model").value);
  let answer;
  try {
    answer = await fetch(`/v1/${isVideo ? "videos" : "images"}:score?${query}`, {
      method: "POST", body: file, signal: newest.signal, headers: { ...headers(), "Content-Type": file.type || "application/octet-stream" },
    });
  } catch {
    if (number === shown) say("the service cannot be reached", { bad: true });
    return;
  }
  if (number !== shown) return;
  if (!answer.ok) {
    const told = await problem(answer);
    if (number !== shown) return;
    $("result").hidden = true;
    say(told, { bad: true });
    return;
  }
  const found = await answer.json();
  if (number !== shown) return;
  draw(found, file);
  say(`${file.name}: answered in ${Math.round(found.timing.total_ms)} ms`);
  askService().catch(() => {});
}

function draw(found, file) {
  if (objectUrl) URL.revokeObjectURL(objectUrl);
  objectUrl = URL.createObjectURL(file);
  const tasks = Object.values(found.tasks);
  // Faces of all tasks, each box once: tasks with one face policy see the same faces.
  const faces = new Map();
  for (const task of tasks) {
    for (const face of task.faces) {
      const key = `${face.frame_index}:${face.box.map(Math.round)}`;
      const known = faces.get(key) ?? { ...face, values: {} };
      Object.assign(known.values, face.values);
      faces.set(key, known);
    }
  }
  const all = [...faces.values()].sort((a, b) => a.frame_index - b.frame_index);
  const canvas = $("canvas");
  const overlay = svg("svg", { viewBox: `0 0 ${found.width} ${found.height}`, "aria-hidden": "true" });
  let media;
  if (found.kind === "video") {
    media = element("video", { src: objectUrl, controls: "", muted: "", playsinline: "", preload: "auto" });
    media.muted = true;
  } else {
    media = element("img", { src: objectUrl, alt: `${file.name}, with ${all.length} scored ${all.length === 1 ? "face" : "faces"} marked` });
  }
  canvas.replaceChildren(media, overlay);
  let shown = null;
  const show = (face, seek = true) => {
    shown = face;
    drawFaces(overlay, found, face === null ? [] : all.filter((item) => item.frame_index === face.frame_index));
    if (found.kind === "video" && face !== null) {
      if (seek && face.pts_s !== null) media.currentTime = face.pts_s;
      for (const point of document.querySelectorAll(".point")) {
        point.classList.toggle("chosen", point.dataset.frame === String(face.frame_index));
      }
    }
  };
  $("timeline").replaceChildren();
  if (found.kind === "video") {
    media.addEventListener("play", () => drawFaces(overlay, found, []));
    const timeline = drawTimeline(all, found, show);
    if (timeline) $("timeline").append(timeline);
    if (all.length) {
      // Whoever was quicker than the video keeps the chosen face.
      media.addEventListener("loadeddata", () => show(shown ?? all[0]), { once: true });
    }
  } else if (all.length) show(all[0]);
  $("caption").textContent = `${found.width}×${found.height} · ${found.codec}` +
    (found.duration_s === null ? "" : ` · ${one(found.duration_s)} s · ${tasks[0]?.num_frames ?? 0} frames looked at`) +
    ` · ${all.length} ${all.length === 1 ? "face" : "faces"} scored` +
    (all.some((face) => face.faces_in_frame > 1) ? ` · up to ${Math.max(...all.map((face) => face.faces_in_frame))} people in a frame` : "");
  $("answers").replaceChildren(...Object.entries(found.tasks).map(([name, task]) => card(name, task, found)));
  $("json").textContent = JSON.stringify(found, (key, value) => key === "score_distribution" ? `[${value.length} probabilities]` : value, 2);
  $("result").hidden = false;
}

function drawFaces(overlay, found, faces) {
  overlay.replaceChildren();
  const size = Math.max(found.width, found.height);
  for (const face of faces) {
    const [left, top, right, bottom] = face.box;
    const place = { x: left, y: top, width: right - left, height: bottom - top, rx: size / 200 };
    overlay.append(svg("rect", { ...place, class: "box-under" }), svg("rect", { ...place, class: "box" }));
    for (const [x, y] of face.landmarks ?? []) overlay.append(svg("circle", { cx: x, cy: y, r: size / 260, class: "mark" }));
    if (face.values.score !== undefined && face.values.score !== null) {
      const height = size / 24;
      const y = top > height ? top - height : bottom;
      overlay.append(
        svg("rect", { x: left, y, width: height * 2.1, height, class: "tag-ground", rx: height / 6 }),
        svg("text", { x: left + height * 1.05, y: y + height * 0.74, class: "tag", "text-anchor": "middle", "font-size": height * 0.7 }, one(face.values.score)),
      );
    }
  }
}

function drawTimeline(faces, found, show) {
  const scored = faces.filter((face) => face.values.score !== undefined && face.pts_s !== null);
  const points = scored.length ? scored : faces.filter((face) => face.pts_s !== null);
  if (!points.length) return null;
  const width = 560, height = 130, left = 34, right = 10, top = 10, bottom = 24;
  const end = Math.max(found.duration_s ?? 0, ...points.map((face) => face.pts_s), 0.1);
  const x = (time) => left + (time / end) * (width - left - right);
  const y = (value) => top + ((99 - value) / 39) * (height - top - bottom);
  const plot = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "plot", role: "group", "aria-label": "Timeline: the score of each frame that was looked at" });
  for (const value of [60, 80, 99]) {
    plot.append(svg("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "axis" }), svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value));
  }
  plot.append(svg("text", { x: left, y: height - 6 }, "0 s"), svg("text", { x: width - right, y: height - 6, "text-anchor": "end" }, `${one(end)} s`));
  if (scored.length) plot.append(svg("polyline", { points: points.map((face) => `${x(face.pts_s)},${y(face.values.score)}`).join(" "), class: "line" }));
  for (const face of points) {
    const value = face.values.score;
    const label = `frame ${face.frame_index}, ${one(face.pts_s)} s` + (value === undefined ? "" : `, score ${one(value)}`);
    const point = svg("circle", { cx: x(face.pts_s), cy: value === undefined ? height / 2 : y(value), r: 7, class: "point", tabindex: 0, role: "button", "aria-label": label, "data-frame": face.frame_index });
    point.append(svg("title", {}, label));
    point.addEventListener("click", () => show(face));
    point.addEventListener("focus", () => show(face));
    point.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); show(face); }
    });
    plot.append(point);
  }
  return plot;
}

function card(name, task, found) {
  const node = element("article", { class: "card", "aria-label": words(name) }, element("h2", {}, words(name)));
  if (task.abstention) {
    node.append(element("p", { class: "abstained" }, `No answer (${words(task.abstention.reason)}): ${task.abstention.detail}.`));
  } else if (task.values && "score_distribution" in task.values) {
    node.append(...scoreParts(task.values));
  } else if (task.values) {
    node.append(attributeList(task.values));
  }
  node.append(element("p", { class: "quiet" },
    `answered by ${task.model.role} version ${task.model.version}, digest ${task.model.digest.slice(0, 12)} · ` +
    `${task.num_faces} of ${task.num_frames} ${found.kind === "video" ? "frames" : "pictures"} with a face`));
  return node;
}

function scoreParts(values) {
  const interval = values.score_low === null || values.score_low === undefined ? `± ${one(values.score_std)} (deviation)` : `${one(values.score_low)} – ${one(values.score_high)}`;
  const line = element("p", { class: "score" }, element("b", {}, one(values.score)), element("span", { class: "quiet" }, `of 60–99 · ${interval} · median ${values.score_median}`));
  const width = 440, height = 150, left = 8, right = 8, top = 16, bottom = 22;
  const peak = Math.max(...values.score_distribution);
  const step = (width - left - right) / 40;
  const x = (score) => left + (score - LOW + 0.5) * step;
  const plot = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "plot", role: "img", "aria-label": `Distribution over 60 to 99, expectation ${one(values.score)}, interval ${interval}` });
  if (values.score_low !== null && values.score_low !== undefined) {
    plot.append(svg("rect", { x: x(values.score_low), width: Math.max(1, x(values.score_high) - x(values.score_low)), y: top, height: height - top - bottom, class: "band" }));
  }
  values.score_distribution.forEach((p, index) => {
    const tall = (p / peak) * (height - top - bottom);
    const bar = svg("rect", { x: left + index * step + 0.8, width: step - 1.6, y: height - bottom - tall, height: tall, class: "bar" });
    bar.append(svg("title", {}, `${LOW + index}: ${(100 * p).toFixed(1)} %`));
    plot.append(bar);
  });
  plot.append(svg("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "axis" }));
  plot.append(svg("line", { x1: x(values.score), x2: x(values.score), y1: top - 6, y2: height - bottom, class: "mean" }));
  for (const score of [60, 70, 80, 90, 99]) plot.append(svg("text", { x: x(score), y: height - 6, "text-anchor": "middle" }, score));
  return [line, plot];
}

function attributeList(values) {
  const list = element("dl", { class: "attributes" });
  for (const name of Object.keys(values)) {
    if (name.endsWith("_p") || name.endsWith("_probabilities") || !(`${name}_p` in values)) continue;
    const value = values[name];
    const p = values[`${name}_p`];
    const sure = value === false ? 1 - p : p;
    const meter = element("progress", { max: 1, value: sure, "aria-label": `${words(name)}: ${Math.round(100 * sure)} %` });
    list.append(element("dt", {}, words(name)), element("dd", {}, meter),
      element("dd", { class: "value" }, `${value === true ? "yes" : value === false ? "no" : value} · ${Math.round(100 * sure)} %`));
  }
  return list;
}

async function sample(name) {
  const answer = await fetch(`/web/samples/${name}`);
  if (!answer.ok) { say(`the sample ${name} is missing`, { bad: true }); return; }
  const data = await answer.blob();
  await score(new File([data], name, { type: data.type || (name.endsWith(".mp4") ? "video/mp4" : "image/jpeg") }));
}

$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) score(file);
  $("file").value = ""; // the same file again is a choice too
});
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
$("drop").addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
$("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
$("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) score(event.dataTransfer.files[0]);
});
for (const button of document.querySelectorAll("[data-sample]")) button.addEventListener("click", () => sample(button.dataset.sample));
$("key").value = sessionStorage.getItem("facereel-key") ?? "";
$("key").addEventListener("change", () => { sessionStorage.setItem("facereel-key", $("key").value.trim()); askService().catch(() => {}); });
askService().catch((error) => { $("models").textContent = error.message; });
