/** The map: land, scenes, scores, hits and the box to search in, all from this server. */

import {
  AttributionControl,
  Map as MapLibre,
  NavigationControl,
  ScaleControl,
  setWorkerUrl,
} from "./vendor/maplibre-gl.js";

setWorkerUrl(new URL("./vendor/maplibre-gl-worker.js", import.meta.url).href);

const EMPTY = { type: "FeatureCollection", features: [] };

/** Colours of scores, lowest first (viridis); the legend in style.css has the same. */
const RAMP = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"];

const MAX_PICTURES = 24; // scenes whose picture is drawn at a time
const MIN_SIDE = 24; // pixels of the screen that a scene must have for its picture
const FAR = 8; // zoom below which scenes and hits are dots

const LIGHT = { sea: "#dfe7ec", land: "#f4f2ee", border: "#b9bfc4", name: "#5d676f", halo: "#f4f2ee", scene: "#5d676f" };
const DARK = { sea: "#10171c", land: "#1f272c", border: "#45515a", name: "#a5b1ba", halo: "#1a2227", scene: "#9daab5" };
const HIT = "#ffb300";
const PICKED = "#ff5a36";

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const colours = () => (dark.matches ? DARK : LIGHT);

/** [west, south, east, north] with west below east, also across the antimeridian. */
const unrolled = ([west, south, east, north]) => [west, south, west > east ? east + 360 : east, north];

const asFeature = (box) => {
  if (!box) return EMPTY;
  const [west, south, east, north] = unrolled(box);
  const ring = [[west, south], [east, south], [east, north], [west, north], [west, south]];
  return { type: "Feature", properties: {}, geometry: { type: "Polygon", coordinates: [ring] } };
};

/** The bounds of features that have a geometry, east above 180 across the antimeridian; null without any. */
export function boundsOf(features) {
  const points = features.flatMap((one) => one.geometry?.coordinates.flat(Infinity) ?? []);
  if (!points.length) return null;
  const [xs, ys] = [0, 1].map((axis) => points.filter((_, at) => at % 2 === axis));
  const spans = [xs, xs.map((x) => (x < 0 ? x + 360 : x))].map((all) => [Math.min(...all), Math.max(...all)]);
  const [west, east] = spans[1][1] - spans[1][0] < spans[0][1] - spans[0][0] ? spans[1] : spans[0];
  return [west, Math.min(...ys), east, Math.max(...ys)];
}

/** A point for each country's name: the middle of its largest part. */
function namesOf(land) {
  return {
    type: "FeatureCollection",
    features: land.features.map(({ properties, geometry }) => {
      const parts = geometry.type === "Polygon" ? [geometry.coordinates] : geometry.coordinates;
      const largest = parts.map(([ring]) => measured(ring)).sort((a, b) => b.area - a.area)[0];
      return { type: "Feature", properties, geometry: { type: "Point", coordinates: largest.middle } };
    }),
  };
}

/** Area and centroid of a ring, in degrees. */
function measured(ring) {
  let [twice, x, y] = [0, 0, 0];
  for (let at = 1; at < ring.length; at += 1) {
    const [[x0, y0], [x1, y1]] = [ring[at - 1], ring[at]];
    const cross = x0 * y1 - x1 * y0;
    twice += cross;
    x += (x0 + x1) * cross;
    y += (y0 + y1) * cross;
  }
  return { area: Math.abs(twice / 2), middle: twice ? [x / (3 * twice), y / (3 * twice)] : ring[0] };
}

/** The middle of a feature, with its properties. */
function middleOf(feature) {
  const [west, south, east, north] = boundsOf([feature]);
  const coordinates = [(west + east) / 2, (south + north) / 2];
  return { type: "Feature", properties: feature.properties, geometry: { type: "Point", coordinates } };
}

export class SceneMap {
  /**
   * `scenes`: as `api/index` lists them. `pictureOf(scene, name)`: a source of MapLibre, or null.
   * `on`: called with the rank of a hit (`pick`, `hover`; null for none), or nothing (`move`).
   */
  constructor(container, { scenes, bounds, land, at, pictureOf, on }) {
    this.scenes = scenes;
    this.pictureOf = pictureOf;
    this.on = on;
    this.shown = new Map(); // scene's id -> picture's name
    this.first = null; // the scene whose picture lies on top
    this.name = "true";
    this.hovered = null;
    this.picked = null;
    const [latitude, longitude, zoom] = at ?? [];
    this.map = new MapLibre({
      container,
      style: styleOf(land, scenes, colours()),
      ...(at ? { center: [longitude, latitude], zoom } : {}),
      ...(bounds && !at ? { bounds: unrolled(bounds), fitBoundsOptions: { padding: 32 } } : {}),
      attributionControl: false,
      dragRotate: false,
      pitchWithRotate: false,
      touchPitch: false,
      maxZoom: 18,
      locale: { "Map.Title": "Map of scenes and hits; arrow keys move it, + and - zoom" },
    });
    this.map.touchZoomRotate.disableRotation();
    this.map.keyboard.disableRotation();
    this.map.addControl(new NavigationControl({ showCompass: false }), "top-left");
    this.map.addControl(new ScaleControl(), "bottom-left");
    const credits = new AttributionControl({ compact: true, customAttribution: "Land: Natural Earth" });
    this.map.addControl(credits, "bottom-right");
    this.ready = new Promise((resolve) => this.map.once("load", resolve)).then(() => this.#wire());
    dark.addEventListener("change", () => this.#recolour());
  }

  #wire() {
    const map = this.map;
    map.on("moveend", () => {
      this.#drawPictures();
      this.on.move();
    });
    map.on("mousemove", "hit-area", (event) => this.#point(event.features[0].properties.rank));
    map.on("mouseleave", "hit-area", () => this.#point(null));
    map.on("click", "hit-area", (event) => {
      if (this.isDrawing) return;
      // Of hits that overlap, the next one at each click.
      const ranks = event.features.map((one) => one.properties.rank);
      this.on.pick(ranks[(ranks.indexOf(this.picked) + 1) % ranks.length]);
    });
    this.#drawPictures();
  }

  #point(rank) {
    if (this.isDrawing) return;
    this.map.getCanvas().style.cursor = rank === null ? "" : "pointer";
    this.hover(rank);
    this.on.hover(rank);
  }

  #recolour() {
    const own = styleOf(EMPTY, [], colours());
    for (const layer of own.layers.filter((one) => one.id !== "scores")) { // their opacity is set on the page
      for (const [name, value] of Object.entries(layer.paint ?? {})) {
        this.map.setPaintProperty(layer.id, name, value);
      }
    }
  }

  #set(source, data) {
    this.map.getSource(source).setData(data);
  }

  /** The features of one page of hits. */
  showHits(features) {
    this.map.removeFeatureState({ source: "hits" });
    this.hovered = this.picked = null;
    // The best is drawn last, on top.
    this.#set("hits", { type: "FeatureCollection", features: [...features].reverse() });
    const centres = features.filter((one) => one.geometry).map(middleOf);
    this.#set("ranks", { type: "FeatureCollection", features: centres });
  }

  setHitsVisible(visible) {
    for (const id of ["hit-area", "hit-casing", "hit-line", "hit-spot", "hit-rank"]) {
      this.map.setLayoutProperty(id, "visibility", visible ? "visible" : "none");
    }
  }

  #state(rank, state) {
    if (rank !== null) this.map.setFeatureState({ source: "hits", id: rank }, state);
  }

  hover(rank) {
    this.#state(this.hovered, { hovered: false });
    this.#state(rank, { hovered: true });
    this.hovered = rank;
  }

  /** Whether a feature lies in view, large enough to be seen. */
  sees(feature) {
    const bounds = boundsOf([feature]);
    if (!bounds) return true;
    const [low, high] = [bounds.slice(0, 2), bounds.slice(2)].map((one) => this.map.project(one));
    const { clientWidth, clientHeight } = this.map.getCanvas();
    return low.x >= 0 && high.x <= clientWidth && high.y >= 0 && low.y <= clientHeight
      && high.x - low.x >= 8;
  }

  /** Mark one hit, and lay the picture of its scene on top. */
  pick(rank, scene = null) {
    this.#state(this.picked, { picked: false });
    this.#state(rank, { picked: true });
    this.picked = rank;
    if (scene !== null && scene !== this.first) {
      this.first = scene;
      this.#drawPictures();
    }
  }

  /** `found`: as `api/scores` answers, or null. */
  showScores(found) {
    this.#set("scores", found?.cells ?? EMPTY);
    if (!found || found.min === null) return;
    const step = (found.max - found.min || 1e-6) / (RAMP.length - 1);
    const stops = RAMP.flatMap((colour, at) => [found.min + at * step, colour]);
    this.map.setPaintProperty("scores", "fill-color", ["interpolate", ["linear"], ["get", "score"], ...stops]);
  }

  setOpacity(share) {
    this.map.setPaintProperty("scores", "fill-opacity", share);
  }

  setPicture(name) {
    this.name = name;
    this.#drawPictures();
  }

  /** Add the pictures of scenes in view, and remove those that left it. */
  #drawPictures() {
    const view = this.view();
    const wanted = new Map();
    if (this.name !== "none") {
      const scenes = this.scenes.filter((one) => this.#isDrawn(one, view));
      scenes.sort((a, b) => (b.id === this.first) - (a.id === this.first)
        || (b.datetime ?? "").localeCompare(a.datetime ?? ""));
      for (const scene of scenes.slice(0, MAX_PICTURES)) wanted.set(scene.id, scene);
    }
    for (const [id, name] of this.shown) {
      if (wanted.has(id) && name === this.name) continue;
      this.map.removeLayer(`picture-${id}`);
      this.map.removeSource(`picture-${id}`);
      this.shown.delete(id);
    }
    for (const [id, scene] of [...wanted].reverse()) {
      const name = `picture-${id}`;
      if (!this.shown.has(id)) {
        const source = this.pictureOf(scene, this.name);
        if (!source) continue;
        this.map.addSource(name, source);
        this.map.addLayer(
          { id: name, type: "raster", source: name, paint: { "raster-fade-duration": 150 } },
          "scene-line",
        );
        this.shown.set(id, this.name);
      }
      this.map.moveLayer(name, "scene-line");
    }
  }

  #isDrawn(scene, view) {
    if (!scene.bounds || !scene.pictures.includes(this.name)) return false;
    const [west, south, east, north] = unrolled(scene.bounds);
    const shift = west > view[2] ? -360 : east < view[0] ? 360 : 0;
    if (west + shift > view[2] || east + shift < view[0] || south > view[3] || north < view[1]) {
      return false;
    }
    const low = this.map.project([west, south]);
    const high = this.map.project([east, north]);
    return Math.max(Math.abs(high.x - low.x), Math.abs(high.y - low.y)) >= MIN_SIDE;
  }

  /** [west, south, east, north] of what is seen; the longitudes may be beyond 180. */
  view() {
    return this.map.getBounds().toArray().flat();
  }

  /** "latitude,longitude,zoom". */
  at() {
    const { lng, lat } = this.map.getCenter().wrap();
    return `${lat.toFixed(4)},${lng.toFixed(4)},${this.map.getZoom().toFixed(2)}`;
  }

  moveTo([latitude, longitude, zoom]) {
    this.map.jumpTo({ center: [longitude, latitude], zoom });
  }

  fit(bounds, maxZoom = 14) {
    if (!bounds) return;
    const [west, south, east, north] = unrolled(bounds);
    this.map.fitBounds([west, south, east, north], { padding: 48, maxZoom, duration: 600 });
  }

  showBox(box) {
    this.#set("box", asFeature(box));
  }

  /**
   * Let the user draw a box: drag, or tap two corners. Resolves to [west, south, east, north], or
   * to null after Escape or `stopDrawing`.
   */
  draw() {
    this.stopDrawing();
    const map = this.map;
    const surface = map.getCanvasContainer();
    const held = [map.dragPan, map.boxZoom, map.doubleClickZoom, map.touchZoomRotate];
    for (const one of held) one.disable();
    surface.classList.add("drawing");
    return new Promise((resolve) => {
      let start = null;
      const where = (event) => {
        const { left, top } = surface.getBoundingClientRect();
        return [event.clientX - left, event.clientY - top];
      };
      const boxTo = (point) => {
        const [one, other] = [start, point].map((corner) => map.unproject(corner));
        const wrap = (longitude) => ((((longitude + 180) % 360) + 360) % 360) - 180;
        return [
          wrap(Math.min(one.lng, other.lng)), Math.min(one.lat, other.lat),
          wrap(Math.max(one.lng, other.lng)), Math.max(one.lat, other.lat),
        ];
      };
      const isWide = (point) =>
        start && Math.abs(point[0] - start[0]) > 6 && Math.abs(point[1] - start[1]) > 6;
      const down = (event) => {
        if (event.button || !event.isPrimary) return;
        event.preventDefault();
        start ??= where(event);
      };
      const move = (event) => {
        if (event.isPrimary && isWide(where(event))) this.showBox(boxTo(where(event)));
      };
      const up = (event) => {
        if (event.isPrimary && isWide(where(event))) finish(boxTo(where(event)));
      };
      const key = (event) => {
        if (event.key === "Escape") finish(null);
      };
      const finish = (box) => {
        surface.removeEventListener("pointerdown", down);
        window.removeEventListener("pointermove", move);
        window.removeEventListener("pointerup", up);
        window.removeEventListener("keydown", key);
        surface.classList.remove("drawing");
        for (const one of held) one.enable();
        map.touchZoomRotate.disableRotation();
        // The click that ends the drawing picks no hit.
        setTimeout(() => {
          if (this.stop === stop) this.stop = null;
        }, 0);
        resolve(box);
      };
      const stop = () => finish(null);
      this.stop = stop;
      surface.addEventListener("pointerdown", down);
      window.addEventListener("pointermove", move);
      window.addEventListener("pointerup", up);
      window.addEventListener("keydown", key);
    });
  }

  get isDrawing() {
    return Boolean(this.stop);
  }

  stopDrawing() {
    this.stop?.();
  }
}

/** The style: nothing of it is fetched; labels are drawn with the browser's own font. */
function styleOf(land, scenes, colour) {
  const state = (name, yes, no) => ["case", ["boolean", ["feature-state", name], false], yes, no];
  const outlines = scenes.filter((one) => one.bounds).map((one) => asFeature(one.bounds));
  const points = outlines.map(middleOf);
  const data = (value) => ({ type: "geojson", data: value });
  return {
    version: 8,
    sources: {
      land: data(land),
      names: data(namesOf(land)),
      scenes: data({ type: "FeatureCollection", features: outlines }),
      spots: data({ type: "FeatureCollection", features: points }),
      scores: data(EMPTY),
      hits: { ...data(EMPTY), promoteId: "rank" },
      ranks: data(EMPTY),
      box: data(EMPTY),
    },
    layers: [
      { id: "sea", type: "background", paint: { "background-color": colour.sea } },
      { id: "land", type: "fill", source: "land", paint: { "fill-color": colour.land } },
      { id: "border", type: "line", source: "land", paint: { "line-color": colour.border, "line-width": 0.8 } },
      {
        id: "country",
        type: "symbol",
        source: "names",
        maxzoom: 8,
        layout: { "text-field": ["get", "name"], "text-font": ["sans-serif"], "text-size": 11, "text-max-width": 7 },
        paint: { "text-color": colour.name, "text-halo-color": colour.halo, "text-halo-width": 1.2 },
      },
      {
        id: "scene-line",
        type: "line",
        source: "scenes",
        paint: { "line-color": colour.scene, "line-width": 1, "line-dasharray": [3, 3] },
      },
      // From far away scenes and hits are dots, which would else be too small to see.
      {
        id: "scene-spot",
        type: "circle",
        source: "spots",
        maxzoom: FAR,
        paint: { "circle-color": colour.scene, "circle-radius": 4, "circle-stroke-color": colour.land, "circle-stroke-width": 1 },
      },
      { id: "scores", type: "fill", source: "scores", paint: { "fill-opacity": 0.6, "fill-antialias": false } },
      { id: "box-casing", type: "line", source: "box", paint: { "line-color": "#ffffff", "line-width": 4 } },
      {
        id: "box-line",
        type: "line",
        source: "box",
        paint: { "line-color": "#0a58ca", "line-width": 2.5, "line-dasharray": [2, 1] },
      },
      {
        id: "hit-area",
        type: "fill",
        source: "hits",
        paint: { "fill-color": state("picked", PICKED, HIT), "fill-opacity": state("hovered", 0.3, state("picked", 0.12, 0)) },
      },
      {
        id: "hit-casing",
        type: "line",
        source: "hits",
        paint: { "line-color": "#000000", "line-opacity": 0.55, "line-width": state("picked", 5, 3.5) },
      },
      {
        id: "hit-line",
        type: "line",
        source: "hits",
        paint: { "line-color": state("picked", PICKED, HIT), "line-width": state("picked", 3, state("hovered", 3, 1.6)) },
      },
      {
        id: "hit-spot",
        type: "circle",
        source: "ranks",
        maxzoom: FAR,
        paint: { "circle-color": HIT, "circle-radius": 5, "circle-stroke-color": "#000000", "circle-stroke-width": 1 },
      },
      {
        id: "hit-rank",
        type: "symbol",
        source: "ranks",
        minzoom: FAR,
        layout: { "text-field": ["to-string", ["get", "rank"]], "text-font": ["sans-serif"], "text-size": 12, "symbol-sort-key": ["get", "rank"] },
        paint: { "text-color": "#ffffff", "text-halo-color": "#000000", "text-halo-width": 1.4 },
      },
    ],
  };
}
