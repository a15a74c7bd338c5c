/** What is asked, and its form in the address: everything after `#`, so that a link repeats it. */

export const NOTHING = Object.freeze({
  query: "",
  against: "",
  like: [],
  unlike: [],
  bbox: null,
  start: null,
  end: null,
  sensors: null,
  max_cloud: null,
  collapse: true,
  page: 0,
});

const WINDOW_ID = /^[0-9a-f]{8,64}-\d{1,10}-\d{1,10}$/;

/** Whether there is anything to rank by. */
export const isAsked = (question) =>
  Boolean(question.query || question.against || question.like.length || question.unlike.length);

/** How many filters are set. */
export const countFilters = (question) =>
  ["against", "bbox", "start", "end", "sensors", "max_cloud"].filter((name) => question[name])
    .length +
  (question.max_cloud === 0 ? 1 : 0) +
  (question.collapse ? 0 : 1);

/** The address's part after `#`. */
export function toHash(question, view) {
  const given = new URLSearchParams();
  if (question.query) given.set("q", question.query);
  if (question.against) given.set("not", question.against);
  for (const id of question.like) given.append("like", id);
  for (const id of question.unlike) given.append("unlike", id);
  if (question.bbox) given.set("bbox", question.bbox.map((one) => +one.toFixed(5)).join(","));
  if (question.start) given.set("from", question.start);
  if (question.end) given.set("to", question.end);
  for (const name of question.sensors ?? []) given.append("sensor", name);
  if (question.max_cloud !== null) given.set("cloud", String(question.max_cloud));
  if (!question.collapse) given.set("overlapping", "1");
  if (question.page) given.set("page", String(question.page + 1));
  if (view.picture !== "true") given.set("picture", view.picture);
  if (view.scores) given.set("scores", "1");
  if (view.at) given.set("at", view.at);
  return given.toString();
}

/** The question and the view of an address; what makes no sense is left out. */
export function fromHash(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const day = (name) => (/^\d{4}-\d{2}-\d{2}$/.test(given.get(name) ?? "") ? given.get(name) : null);
  const cloud = given.has("cloud") ? Number(given.get("cloud")) : NaN;
  const page = Number(given.get("page") ?? 1);
  const ids = (name) => given.getAll(name).filter((one) => WINDOW_ID.test(one)).slice(0, 50);
  const sensors = given.getAll("sensor").slice(0, 50);
  const at = (given.get("at") ?? "").split(",").map(Number);
  return {
    question: {
      ...NOTHING,
      query: (given.get("q") ?? "").trim(),
      against: (given.get("not") ?? "").trim(),
      like: ids("like"),
      unlike: ids("unlike"),
      bbox: asBox((given.get("bbox") ?? "").split(",")),
      start: day("from"),
      end: day("to"),
      sensors: sensors.length ? sensors : null,
      max_cloud: cloud >= 0 && cloud <= 1 ? cloud : null,
      collapse: !given.has("overlapping"),
      page: Number.isInteger(page) && page > 0 ? page - 1 : 0,
    },
    view: {
      picture: ["false", "none"].includes(given.get("picture")) ? given.get("picture") : "true",
      scores: given.has("scores"),
      at: isView(at) ? given.get("at") : null,
    },
  };
}

const isView = ([latitude, longitude, zoom, ...rest]) =>
  !rest.length && Math.abs(latitude) <= 90 && Math.abs(longitude) <= 180 && zoom >= 0 && zoom <= 22;

/** Four texts or numbers as [west, south, east, north]; null unless they make a box. */
export function asBox(given) {
  if (given.length !== 4 || given.some((one) => String(one).trim() === "")) return null;
  const [west, south, east, north] = given.map(Number);
  const inRange = [west, east].every((one) => Math.abs(one) <= 180)
    && [south, north].every((one) => Math.abs(one) <= 90);
  return inRange && south < north && west !== east ? [west, south, east, north] : null;
}
