/** Where the answers come from: a server, or the files that `--static` wrote. Both answer alike. */

/** One line for a person. `status`: of HTTP, 0 where nobody answered. */
export class SourceError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The folder of the page, with a slash at its end and without `#...`. */
export const HERE = new URL(".", document.baseURI).href;

async function answer(address, options) {
  let response;
  try {
    response = await fetch(HERE + address, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new SourceError("The server does not answer. Check that it still runs.");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new SourceError(
    typeof told.error === "string" ? told.error : `The server answered with status ${response.status}.`,
    response.status,
  );
}

async function read(address, options) {
  try {
    return await (await answer(address, options)).json();
  } catch (error) {
    if (error instanceof SyntaxError) throw new SourceError("The server sent something that is not JSON.");
    throw error;
  }
}

const asked = (body, signal) => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(body),
  signal,
});

/** `terralign serve`. */
export class Server {
  isStatic = false;

  index() {
    return read("api/index");
  }

  search(body, signal) {
    return read("api/search", asked(body, signal));
  }

  scores(body, signal) {
    return read("api/scores", asked(body, signal));
  }

  async download(format, body) {
    return (await answer(`api/download?format=${format}`, asked(body))).blob();
  }

  thumbnail(hit, picture) {
    return `${HERE}${hit.thumbnail}${picture === "false" ? "?picture=false" : ""}`;
  }

  /** A source of MapLibre for a scene's picture. */
  picture(scene, picture) {
    return {
      type: "raster",
      tiles: [`${HERE}api/tiles/${scene.id}/${picture}/{z}/{x}/{y}.png`],
      tileSize: 256,
      bounds: scene.bounds,
      maxzoom: 18,
    };
  }
}

/** What `terralign serve --static` wrote: one list of hits, of which pages are cut here. */
export class Files {
  isStatic = true;
  #found = null;

  index() {
    return read("data/index.json");
  }

  async search({ page, page_size }) {
    this.#found ??= await read("data/search.json");
    const features = this.#found.hits.features;
    const pages = Math.max(1, Math.ceil(features.length / page_size));
    const shown = Math.min(page, pages - 1);
    return {
      ...this.#found,
      page: shown,
      pages,
      hits: {
        type: "FeatureCollection",
        features: features.slice(shown * page_size, (shown + 1) * page_size),
      },
    };
  }

  scores() {
    return read("data/scores.json");
  }

  async download() {
    return (await answer("data/hits.geojson")).blob();
  }

  /** "" for a window whose scene was not at hand. */
  thumbnail(hit) {
    return hit.thumbnail ? HERE + hit.thumbnail : "";
  }

  picture(scene, picture) {
    const path = scene.images?.[picture];
    if (!path) return null;
    const [west, south, east, north] = scene.image_bounds;
    return {
      type: "image",
      url: HERE + path,
      coordinates: [[west, north], [east, north], [east, south], [west, south]],
    };
  }
}
