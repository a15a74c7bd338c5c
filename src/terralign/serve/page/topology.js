/** GeoJSON features of one object of a TopoJSON topology with quantised arcs. */
export function featuresOf(topology, name) {
  const { scale, translate } = topology.transform;
  const lines = topology.arcs.map((arc) => {
    let x = 0;
    let y = 0;
    return arc.map(([dx, dy]) => [
      (x += dx) * scale[0] + translate[0],
      (y += dy) * scale[1] + translate[1],
    ]);
  });
  // A negative number is the arc ~number, backwards.
  const line = (number) => (number < 0 ? lines[~number].slice().reverse() : lines[number]);
  // An arc begins where the one before it ends.
  const ring = (numbers) => unrolled(numbers.flatMap((one, at) => line(one).slice(at ? 1 : 0)));
  const polygon = (rings) => rings.map(ring);
  return {
    type: "FeatureCollection",
    features: topology.objects[name].geometries
      .filter((one) => one.type === "Polygon" || one.type === "MultiPolygon")
      .map((one) => ({
        type: "Feature",
        properties: one.properties ?? {},
        geometry: {
          type: one.type,
          coordinates: one.type === "Polygon" ? polygon(one.arcs) : one.arcs.map(polygon),
        },
      })),
  };
}

/** A ring across the antimeridian, with longitudes that count on beyond 180 rather than jump. */
function unrolled(ring) {
  let turn = 0;
  const points = ring.map(([x, y], at) => {
    const step = at ? x - ring[at - 1][0] : 0;
    if (Math.abs(step) > 180) turn -= 360 * Math.sign(step);
    return [x + turn, y];
  });
  return turn ? ring : points; // around a pole it does not close
}
