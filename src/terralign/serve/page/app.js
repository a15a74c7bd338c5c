/** The page: one question at a time, its hits as a list and on the map. */

import { HitList } from "./hits.js";
import { boundsOf, SceneMap } from "./map.js";
import { asBox, countFilters, fromHash, isAsked, NOTHING, toHash } from "./question.js";
import { Files, HERE, Server, SourceError } from "./source.js";
import { featuresOf } from "./topology.js";

const byId = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en");
const counted = (count, what) => `${number(count)} ${what}${count === 1 ? "" : "s"}`;
const isPhone = window.matchMedia("(max-width: 56rem)");

const source = document.querySelector('meta[name="terralign-static"]') ? new Files() : new Server();
const PAGE = 24; // hits
const SIDES = ["west", "south", "east", "north"];

let index; // as the server describes it
let map = null; // null where the browser cannot draw one
let list;
let { question, view } = fromHash(location.hash);
let marks = new Map(); // id -> 1 or -1, also those that the question is not asked with yet
let features = []; // of the page that is shown
let picked = null; // a feature
let running = null; // AbortController of the search that runs
let scored = ""; // the question that the layer of scores is of
let moved = 0; // timer
let isEarly = false; // whether a question was sent before the page was ready
const thumbnails = new Map(); // id -> address, of every hit seen

// ---- start ----

async function start() {
  document.body.classList.toggle("static", source.isStatic);
  try {
    index = await source.index();
  } catch (error) {
    announce("");
    showError(error, start);
    return;
  }
  showError(null);
  describe();
  list = new HitList({
    thumbnailOf: (hit) => (whyOf(hit) ? "" : source.thumbnail(hit, view.picture)),
    whyOf,
    canRefine: !source.isStatic,
    on: {
      pick: (feature) => {
        pick(feature === picked ? null : feature);
        if (picked && map && !map.sees(picked)) map.fit(boundsOf([picked]), 13);
      },
      similar: searchLike,
      zoom: (feature) => map?.fit(boundsOf([feature]), 14),
      mark,
      hover: (rank) => map?.hover(rank),
    },
  });
  await makeMap();
  wire();
  const early = byId("query").value; // typed before the page was ready
  followAddress();
  if (early && !isAsked(question)) {
    byId("query").value = early;
    if (isEarly) byId("ask").requestSubmit();
  }
}

function describe() {
  document.title = index.title ? `${index.title} – terralign` : "terralign";
  byId("about").textContent =
    `${index.title}: ${counted(index.windows, "window")} of ${counted(index.num_scenes, "scene")}, model ${index.model}`;
  byId("about").title = `${byId("about").textContent}, space ${index.space_id}`;
  byId("warning").textContent = index.warning;
  byId("warning").hidden = !index.warning;
  byId("query").maxLength = byId("against").maxLength = index.limits.text;
  byId("examples").replaceChildren(
    ...index.examples.slice(0, 6).map((text) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.addEventListener("click", () => askAnew({ ...NOTHING, query: text }));
      return button;
    }),
  );
  for (const field of document.querySelectorAll(".dated")) field.hidden = !index.dates;
  for (const id of ["start", "end"]) {
    if (index.dates) [byId(id).min, byId(id).max] = index.dates.map((one) => one.slice(0, 10));
  }
  byId("sensors").hidden = index.sensors.length < 2;
  byId("sensors").querySelector(".checks").replaceChildren(
    ...index.sensors.map((name) => {
      const label = document.createElement("label");
      const box = document.createElement("input");
      label.className = "check";
      box.type = "checkbox";
      box.value = name;
      label.append(box, ` ${name}`);
      return label;
    }),
  );
  const isShown = (name) => index.scenes.some((one) => one.pictures.includes(name));
  for (const input of byId("pictures").querySelectorAll("input")) {
    input.closest("label").hidden = input.value !== "none" && !isShown(input.value);
  }
  byId("pictures").hidden = !isShown("true") && !isShown("false");
}

/** Why the scene of a hit cannot be shown; "" where it can. */
const whyOf = (hit) => index.scenes.find((one) => one.id === hit.scene)?.why ?? "";

async function makeMap() {
  try {
    const topology = await (await fetch(`${HERE}static/vendor/countries-50m.json`)).json();
    map = new SceneMap(byId("map"), {
      scenes: index.scenes,
      bounds: index.bounds,
      land: featuresOf(topology, "countries"),
      at: view.at?.split(",").map(Number),
      pictureOf: (scene, name) => source.picture(scene, name),
      on: {
        pick: (rank) => pick(features.find((one) => one.properties.rank === rank), true),
        hover: (rank) => list.hover(rank),
        move: () => {
          view.at = map.at();
          clearTimeout(moved); // browsers refuse many changes of the address at once
          moved = setTimeout(keepAddress, 250);
        },
      },
    });
    await map.ready;
  } catch (error) {
    map = null;
    byId("no-map").textContent =
      "The map cannot be drawn here (it needs WebGL 2). Searching works without it.";
    byId("no-map").hidden = false;
    document.body.classList.add("mapless");
    console.warn(error);
  }
}

// ---- the address ----

const addressOf = () => `#${toHash(question, view)}`;

function keepAddress() {
  history.replaceState(null, "", addressOf());
}

/** Show what the address asks for: at the start, and after going back. */
function followAddress() {
  const asked = fromHash(location.hash);
  question = asked.question;
  view = { ...asked.view, at: asked.view.at ?? view.at };
  if (map && asked.view.at && asked.view.at !== map.at()) {
    map.moveTo(asked.view.at.split(",").map(Number));
  }
  setMarks();
  fillForm();
  showView();
  if (source.isStatic || isAsked(question)) search();
  else showNothing();
}

// ---- the form ----

function fillForm() {
  byId("query").value = question.query;
  byId("against").value = question.against;
  SIDES.forEach((side, at) => {
    byId(side).value = question.bbox ? +question.bbox[at].toFixed(5) : "";
  });
  byId("start").value = question.start ?? "";
  byId("end").value = question.end ?? "";
  for (const box of byId("sensors").querySelectorAll("input")) {
    box.checked = question.sensors?.includes(box.value) ?? false;
  }
  byId("cloud").value = question.max_cloud === null ? 100 : Math.round(100 * question.max_cloud);
  byId("collapse").checked = question.collapse;
  showCloud();
  const count = countFilters(question);
  byId("num-filters").textContent = count ? ` (${count} set)` : "";
  map?.showBox(question.bbox);
  showMarked();
}

function showCloud() {
  const value = Number(byId("cloud").value);
  byId("cloud-text").textContent = value === 100 ? "any" : `${value} %`;
}

/** What the form says; null, with the field marked, where it makes no sense. */
function readForm() {
  const sides = SIDES.map((side) => byId(side).value);
  const bbox = asBox(sides);
  const isWrong = !bbox && (sides.some(Boolean) || SIDES.some((side) => byId(side).validity.badInput));
  const [start, end] = ["start", "end"].map((id) => byId(id).value || null);
  const isReversed = Boolean(start && end && start > end);
  markInvalid(SIDES, isWrong, "Give west, south, east and north in degrees, south below north.");
  markInvalid(["start", "end"], isReversed, "The first day is after the last one.");
  if (isWrong || isReversed) {
    byId("filters").open = true;
    const field = byId(isWrong ? "west" : "start");
    field.focus();
    field.reportValidity();
    return null;
  }
  const sensors = [...byId("sensors").querySelectorAll("input:checked")].map((one) => one.value);
  const cloud = Number(byId("cloud").value);
  return {
    ...question,
    query: byId("query").value.trim(),
    against: byId("against").value.trim(),
    bbox,
    start,
    end,
    sensors: sensors.length ? sensors : null,
    max_cloud: cloud === 100 ? null : cloud / 100,
    collapse: byId("collapse").checked,
    page: 0,
  };
}

function markInvalid(ids, isWrong, text) {
  for (const id of ids) {
    byId(id).setCustomValidity(isWrong ? text : "");
    byId(id).setAttribute("aria-invalid", String(isWrong));
  }
}

function wire() {
  byId("ask").addEventListener("submit", () => {
    const asked = readForm();
    if (!asked) return;
    // Another text is searched without marks; they stay at hand, for "Refine".
    if (asked.query !== question.query) asked.like = asked.unlike = [];
    if (isAsked(asked)) ask(asked);
    else {
      byId("query").focus();
      announce("Type what to look for first.");
    }
  });
  byId("cloud").addEventListener("input", showCloud);
  byId("clear-filters").addEventListener("click", () => {
    const { query, like, unlike } = question;
    changeFilters({ ...NOTHING, query, like, unlike });
  });
  byId("clear-box").addEventListener("click", () => changeFilters({ ...question, bbox: null, page: 0 }));
  byId("use-view").addEventListener("click", () => {
    if (!map) return;
    const [west, south, east, north] = map.view();
    const wrap = (one) => ((((one + 180) % 360) + 360) % 360) - 180;
    const isWorld = east - west >= 360;
    const bbox = [isWorld ? -180 : wrap(west), Math.max(-90, south), isWorld ? 180 : wrap(east), Math.min(90, north)];
    changeFilters({ ...question, bbox, page: 0 });
  });
  for (const button of document.querySelectorAll("[data-draw]")) {
    button.addEventListener("click", drawBox);
  }
  byId("fit").addEventListener("click", () => {
    map?.fit(boundsOf(features) ?? index.bounds);
  });
  byId("refine").addEventListener("click", refine);
  byId("clear-marks").addEventListener("click", () => {
    const isApplied = question.like.length || question.unlike.length;
    const next = { ...question, like: [], unlike: [], page: 0 };
    marks.clear();
    list.showMarks(marks);
    showMarked();
    if (!isApplied) return;
    if (isAsked(next)) ask(next);
    else {
      question = next;
      history.pushState(null, "", addressOf());
      followAddress();
    }
  });
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("results").focus();
  });
  for (const input of byId("pictures").querySelectorAll("input")) {
    input.addEventListener("change", () => {
      view.picture = input.value;
      showView();
      list.showPictures();
      keepAddress();
    });
  }
  byId("show-hits").addEventListener("change", showView);
  byId("show-scores").addEventListener("change", () => {
    view.scores = byId("show-scores").checked;
    showView();
    showScores();
    keepAddress();
  });
  byId("opacity").addEventListener("input", () => map?.setOpacity(Number(byId("opacity").value) / 100));
  for (const button of byId("downloads").querySelectorAll("button")) {
    button.hidden = source.isStatic && button.dataset.format !== "geojson";
    button.addEventListener("click", () => download(button));
  }
  window.addEventListener("popstate", followAddress);
  window.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && picked && !map?.isDrawing) pick(null);
  });
  byId("layers").open = !isPhone.matches;
}

function changeFilters(next) {
  if (isAsked(next)) ask(next);
  else {
    question = next;
    fillForm();
    keepAddress();
  }
}

async function drawBox() {
  if (!map) return;
  if (map.isDrawing) {
    map.stopDrawing();
    return;
  }
  const hint = byId("hint");
  byId("draw").setAttribute("aria-pressed", "true");
  hint.textContent = "Drag a box, or tap two corners. Escape cancels.";
  hint.hidden = false;
  byId("place").scrollIntoView({ block: "nearest" });
  const bbox = await map.draw();
  byId("draw").setAttribute("aria-pressed", "false");
  hint.hidden = true;
  if (bbox) changeFilters({ ...question, bbox, page: 0 });
  else map.showBox(question.bbox);
}

// ---- layers ----

function showView() {
  for (const input of byId("pictures").querySelectorAll("input")) {
    input.checked = input.value === view.picture;
  }
  byId("show-scores").checked = view.scores;
  byId("legend").hidden = !view.scores || !scored;
  if (!map) return;
  map.setPicture(view.picture);
  map.setHitsVisible(byId("show-hits").checked);
  map.setOpacity(Number(byId("opacity").value) / 100);
}

/** Fetch the scores of the question where they are wanted and not there yet. */
async function showScores() {
  if (!map) return;
  const body = bodyOf(question);
  const wanted = view.scores && (source.isStatic || isAsked(question)) ? JSON.stringify(body) : "";
  if (wanted === scored) return;
  scored = wanted;
  if (!wanted) {
    map.showScores(null);
    byId("legend").hidden = true;
    return;
  }
  try {
    const found = await source.scores(body);
    if (scored !== wanted) return;
    map.showScores(found);
    byId("legend").hidden = found.min === null;
    byId("least").textContent = (found.min ?? 0).toFixed(3);
    byId("most").textContent = (found.max ?? 0).toFixed(3);
    byId("thinned").hidden = found.thinned < 2;
    byId("thinned").textContent = `Every ${found.thinned}th window is drawn, of ${number(found.num_searched)}.`;
  } catch (error) {
    if (scored !== wanted) return;
    scored = "";
    announce(`No scores: ${error.message}`);
  }
}

// ---- search ----

/** The body of a request; that of a search has a page too. */
const bodyOf = ({ page: _, ...asked }) => ({ ...asked, k: Math.min(200, index.limits.k) });
const pageOf = (asked) => ({ ...bodyOf(asked), page: asked.page, page_size: PAGE });

/** Ask a question; marks that it is not asked with stay, for "Refine". */
function ask(next) {
  question = next;
  const address = addressOf();
  if (address !== location.hash) history.pushState(null, "", address);
  fillForm();
  return search();
}

/** Ask a question that has nothing to do with the last one: its marks go. */
function askAnew(next) {
  question = next;
  setMarks();
  return ask(next);
}

/** Run the question and show its page of hits. */
async function search() {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  pick(null);
  showError(null);
  byId("empty").hidden = true;
  byId("results").setAttribute("aria-busy", "true");
  byId("hits").setAttribute("aria-label", "Hits");
  const loading = setTimeout(() => {
    announce("Searching …");
    list.showLoading(6);
  }, 250);
  try {
    const found = await source.search(pageOf(question), signal);
    clearTimeout(loading);
    showFound(found);
    showScores();
  } catch (error) {
    clearTimeout(loading);
    if (error.name === "AbortError") return;
    clearHits();
    announce("");
    showError(error, search);
  }
  byId("results").removeAttribute("aria-busy");
}

function showFound(found) {
  features = found.hits.features;
  for (const one of features) thumbnails.set(one.id, one.properties.thumbnail);
  list.show(features, marks);
  map?.showHits(features);
  question.page = found.page;
  byId("heading").textContent = titleOf(found);
  announce(summaryOf(found));
  byId("downloads").hidden = !features.length;
  byId("pages").hidden = found.pages < 2;
  byId("page-number").textContent = `Page ${found.page + 1} of ${found.pages}`;
  byId("previous").disabled = found.page === 0;
  byId("next").disabled = found.page >= found.pages - 1;
  byId("empty").hidden = features.length > 0;
  byId("empty").textContent = found.num_searched
    ? "Nothing was found that is close enough."
    : "No window meets the filters. Take a larger area, more days, or clear the filters.";
  showMarked();
}

function titleOf(found) {
  if (source.isStatic) return found.query;
  const { query, like, unlike } = question;
  if (!query) return like.length ? "Like the marked hits" : "Results";
  return like.length || unlike.length ? `${query}, refined` : query;
}

function summaryOf(found) {
  const best = found.num_hits < found.num_searched ? `Best ${number(found.num_hits)} of ` : "";
  const time = source.isStatic ? "" : `, ${found.took_ms < 1 ? "under 1" : Math.round(found.took_ms)} ms`;
  const page = found.page ? `, page ${found.page + 1} of ${found.pages}` : "";
  return `${best}${counted(found.num_searched, "window")}${time}${page}`;
}

function clearHits() {
  features = [];
  list?.show([], marks);
  map?.showHits([]);
  byId("downloads").hidden = byId("pages").hidden = true;
}

function showNothing() {
  running?.abort();
  clearHits();
  showScores();
  showError(null);
  byId("heading").textContent = "Results";
  announce("");
  byId("empty").hidden = false;
  byId("empty").textContent =
    "Type what to look for, in words, or pick an example. The windows that match best are listed here and outlined on the map.";
}

async function turn(step) {
  await ask({ ...question, page: question.page + step });
  byId("results").scrollTop = 0;
  byId("heading").focus();
}

function announce(text) {
  byId("status").textContent = text;
}

function showError(error, again = null) {
  const place = byId("error");
  place.hidden = !error;
  if (!error) return;
  if (!(error instanceof SourceError)) console.error(error);
  place.querySelector("p").textContent =
    error instanceof SourceError ? error.message : "Something went wrong on this page. Load it again.";
  byId("again").onclick = () => again?.();
}

// ---- one hit ----

function pick(feature, scroll = false) {
  picked = feature ?? null;
  const rank = picked?.properties.rank ?? null;
  list.pick(rank, scroll);
  map?.pick(rank, picked?.properties.scene ?? null);
}

async function searchLike(feature) {
  await askAnew({ ...question, query: "", against: "", like: [feature.id], unlike: [], page: 0 });
  byId("heading").focus();
}

// ---- refining ----

/** The marks that the question is asked with. */
function setMarks() {
  marks = new Map([
    ...question.like.map((id) => [id, 1]),
    ...question.unlike.map((id) => [id, -1]),
  ]);
}

function mark(feature, value) {
  if (value) marks.set(feature.id, value);
  else marks.delete(feature.id);
  list.showMarks(marks);
  showMarked();
}

const marked = (value) => [...marks].filter(([, one]) => one === value).map(([id]) => id);

function showMarked() {
  byId("marks").hidden = !marks.size || source.isStatic;
  document.body.classList.toggle("marking", marks.size > 0);
  byId("marked").replaceChildren(
    ...[...marks].map(([id, value]) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      item.className = value > 0 ? "right" : "wrong";
      button.type = "button";
      button.title = "Remove this mark";
      button.setAttribute("aria-label", `${value > 0 ? "More" : "Less"} like ${id}: remove this mark`);
      const sign = document.createElement("span");
      sign.textContent = value > 0 ? "+" : "−";
      button.append(sign);
      if (thumbnails.has(id)) {
        const picture = document.createElement("img");
        picture.alt = "";
        picture.src = source.thumbnail({ thumbnail: thumbnails.get(id) }, view.picture);
        button.prepend(picture);
      }
      button.addEventListener("click", () => {
        mark({ id }, 0);
        byId("refine").focus();
      });
      item.append(button);
      return item;
    }),
  );
  const isNew = marked(1).join() !== question.like.join() || marked(-1).join() !== question.unlike.join();
  byId("refine").disabled = !isNew || !(question.query || marked(1).length);
  byId("refine").textContent = isNew ? "Refine" : "Refined";
}

async function refine() {
  await ask({ ...question, like: marked(1), unlike: marked(-1), page: 0 });
  byId("heading").focus();
}

// ---- download ----

async function download(button) {
  const { format } = button.dataset;
  button.disabled = true;
  try {
    const blob = await source.download(format, bodyOf(question));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `hits.${format === "geojson" ? "geojson" : "parquet"}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) {
    announce(`No file: ${error.message}`);
  } finally {
    button.disabled = false;
  }
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  isEarly = true; // until the page is ready, nothing else listens
});
start();
