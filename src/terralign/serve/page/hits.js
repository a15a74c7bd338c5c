/** The list of hits: pictures, facts, and what can be done with each. */

import { boundsOf } from "./map.js";

const byId = (id) => document.getElementById(id);

const day = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeZone: "UTC" });
const moment = new Intl.DateTimeFormat("en-GB", {
  dateStyle: "medium",
  timeStyle: "short",
  timeZone: "UTC",
});

const asDate = (text, format) => {
  const when = new Date(text ?? NaN);
  return Number.isNaN(when.getTime()) ? "" : format.format(when);
};

const percent = (share) => (typeof share === "number" ? `${Math.round(100 * share)} %` : "");

/** "17.9652 N, 103.7044 E" of the middle of a footprint. */
export function placeOf(feature) {
  const bounds = boundsOf([feature]);
  if (!bounds) return "";
  const [east, latitude] = [(bounds[0] + bounds[2]) / 2, (bounds[1] + bounds[3]) / 2];
  const longitude = east > 180 ? east - 360 : east;
  const part = (value, plus, minus) => `${Math.abs(value).toFixed(4)} ${value < 0 ? minus : plus}`;
  return `${part(latitude, "N", "S")}, ${part(longitude, "E", "W")}`;
}

const isWeb = (address) => /^https?:\/\//i.test(address ?? "");

export class HitList {
  /**
   * `thumbnailOf(hit)`: an address, "" for none; `whyOf(hit)`: why it has none. `on`: called with a feature and the button (`pick`, `similar`,
   * `zoom`), with a feature and 1, -1 or 0 (`mark`), with a rank or null (`hover`).
   */
  constructor({ thumbnailOf, whyOf, canRefine, on }) {
    this.thumbnailOf = thumbnailOf;
    this.whyOf = whyOf;
    this.canRefine = canRefine;
    this.on = on;
    this.list = byId("hits");
    this.cards = new Map(); // rank -> card
  }

  show(features, marks) {
    this.cards.clear();
    const scores = features.map((one) => one.properties.score);
    const [least, most] = [Math.min(...scores), Math.max(...scores)];
    const share = (score) => (most > least ? (score - least) / (most - least) : 1);
    this.list.replaceChildren(
      ...features.map((one) => this.#card(one, share(one.properties.score))),
    );
    this.showMarks(marks);
  }

  /** Grey places where hits will be. */
  showLoading(number) {
    this.cards.clear();
    const places = Array.from({ length: number }, () => {
      const place = document.createElement("li");
      place.className = "hit waiting";
      return place;
    });
    this.list.replaceChildren(...places);
  }

  #card(feature, share) {
    const card = byId("hit").content.firstElementChild.cloneNode(true);
    const find = (selector) => card.querySelector(selector);
    const hit = feature.properties;
    const name = `hit ${hit.rank}`;
    card.dataset.id = feature.id;
    find("img").addEventListener("error", () => card.classList.add("no-picture"));
    this.#showPicture(card, hit);
    find(".rank").textContent = hit.rank;
    find(".score").textContent = hit.score.toFixed(3);
    find(".bar span").style.width = `${Math.round(8 + 92 * share)}%`;
    find(".caption").textContent = asDate(hit.datetime, day) || hit.scene_name;
    const pick = find(".pick");
    const place = placeOf(feature);
    pick.setAttribute("aria-label", [`Hit ${hit.rank}, score ${hit.score.toFixed(3)}`, place].filter(Boolean).join(", "));
    find(".zoom").hidden = !place;
    pick.addEventListener("click", () => this.on.pick(feature));
    find(".acts").setAttribute("aria-label", `Refine by ${name}`);
    find(".acts").hidden = !this.canRefine;
    for (const [selector, mark, text] of [[".plus", 1, "More like"], [".minus", -1, "Less like"]]) {
      const button = find(selector);
      button.setAttribute("aria-label", `${text} ${name}`);
      button.addEventListener("click", () => {
        this.on.mark(feature, button.getAttribute("aria-pressed") === "true" ? 0 : mark);
      });
    }
    find(".similar").setAttribute("aria-label", `Search for windows like ${name}`);
    find(".similar").addEventListener("click", () => this.on.similar(feature));
    find(".zoom").addEventListener("click", () => this.on.zoom(feature));
    if (isWeb(hit.source)) {
      find(".source").href = hit.source;
      find(".source").hidden = false;
    }
    card.addEventListener("pointerenter", () => this.on.hover(hit.rank));
    card.addEventListener("pointerleave", () => this.on.hover(null));
    card.addEventListener("focusin", () => this.on.hover(hit.rank));
    card.addEventListener("focusout", () => this.on.hover(null));
    find("dl").append(...factsOf(feature, this.whyOf(hit)));
    this.cards.set(hit.rank, { card, feature });
    return card;
  }

  showPictures() {
    for (const { card, feature } of this.cards.values()) this.#showPicture(card, feature.properties);
  }

  #showPicture(card, hit) {
    const address = this.thumbnailOf(hit);
    card.classList.toggle("no-picture", !address);
    if (address) card.querySelector("img").src = address;
  }

  /** `marks`: id -> 1 or -1. */
  showMarks(marks) {
    for (const { card, feature } of this.cards.values()) {
      const mark = marks.get(feature.id) ?? 0;
      card.classList.toggle("right", mark > 0);
      card.classList.toggle("wrong", mark < 0);
      card.querySelector(".plus").setAttribute("aria-pressed", String(mark > 0));
      card.querySelector(".minus").setAttribute("aria-pressed", String(mark < 0));
    }
  }

  hover(rank) {
    for (const [one, { card }] of this.cards) card.classList.toggle("hovered", one === rank);
  }

  /** Open the card of one hit, and close the others. */
  pick(rank, scroll) {
    for (const [one, { card }] of this.cards) {
      const isOpen = one === rank;
      card.classList.toggle("open", isOpen);
      card.querySelector(".more").hidden = !isOpen;
      card.querySelector(".pick").setAttribute("aria-expanded", String(isOpen));
    }
    if (scroll) this.cards.get(rank)?.card.scrollIntoView({ block: "nearest" });
  }
}

function factsOf(feature, why) {
  const hit = feature.properties;
  const isCentred = typeof hit.ranked_by === "number" && Math.abs(hit.ranked_by - hit.score) > 1e-5;
  const facts = [
    ["Scene", hit.scene_name],
    ["Date", asDate(hit.datetime, moment) && `${asDate(hit.datetime, moment)} UTC`],
    ["Sensor", hit.sensor],
    ["Tower", hit.tower === hit.sensor ? "" : hit.tower],
    ["Place", placeOf(feature)],
    ["Score", `${hit.score.toFixed(4)} (cosine)`],
    ["Ranked by", isCentred ? `${hit.ranked_by.toFixed(2)} standard deviations above its tower's mean` : ""],
    ["Cloud", percent(hit.cloud_share)],
    ["Valid", percent(hit.valid_share)],
    ["File", isWeb(hit.source) ? "" : hit.source],
    ["Picture", why],
    ["Id", feature.id],
  ];
  return facts.filter(([, value]) => value).flatMap(([name, value]) => {
    const term = document.createElement("dt");
    const text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    return [term, text];
  });
}
