// The mask of an edit: strokes and boxes over the first frame, at the size of the file itself.
// The value is JSON: `mask`, a png that is white where to fill, and `box` while only a box is drawn.
const canvas = element.querySelector("canvas");
const view = canvas.getContext("2d");
const mask = document.createElement("canvas");
const pen = mask.getContext("2d");
const frame = new Image();
let tool = "brush", from = null, boxes = 0, strokes = 0, box = null;

const place = (event) => {
  const area = canvas.getBoundingClientRect();
  const clamp = (value, most) => Math.min(Math.max(value, 0), most);
  return {
    x: clamp(((event.clientX - area.left) / area.width) * mask.width, mask.width),
    y: clamp(((event.clientY - area.top) / area.height) * mask.height, mask.height),
  };
};

const draw = (rectangle = null) => {
  view.imageSmoothingEnabled = false;
  view.globalCompositeOperation = "source-over";
  view.clearRect(0, 0, canvas.width, canvas.height);
  view.globalAlpha = 0.6;
  view.drawImage(mask, 0, 0, canvas.width, canvas.height);
  if (rectangle) {
    const scale = canvas.width / mask.width;
    view.fillStyle = "#f0f";
    view.fillRect(...rectangle.map((value) => value * scale));
  }
  view.globalAlpha = 1;
  if (frame.complete && frame.naturalWidth) {
    view.globalCompositeOperation = "destination-over";
    view.drawImage(frame, 0, 0, canvas.width, canvas.height);
  }
};

const clear = () => {
  [boxes, strokes, box] = [0, 0, null];
  pen.clearRect(0, 0, mask.width, mask.height);
  draw();
};

const reset = () => {
  [mask.width, mask.height] = props.size || [64, 64];
  const scale = 512 / Math.max(mask.width, mask.height);
  canvas.width = Math.max(Math.round(mask.width * scale), 1);
  canvas.height = Math.max(Math.round(mask.height * scale), 1);
  frame.onload = () => draw();
  if (props.picture) frame.src = props.picture;
  else frame.removeAttribute("src");
  clear();
};

const publish = () => {
  const file = document.createElement("canvas");
  [file.width, file.height] = [mask.width, mask.height];
  const white = file.getContext("2d");
  // Covered pixels become white at once: half-covered ones of a stroke's edge too.
  const pixels = pen.getImageData(0, 0, mask.width, mask.height);
  let any = false;
  for (let i = 0; i < pixels.data.length; i += 4) {
    const on = pixels.data[i + 3] > 100;
    any ||= on;
    pixels.data.fill(on ? 255 : 0, i, i + 3);
    pixels.data[i + 3] = 255;
  }
  white.putImageData(pixels, 0, 0);
  const only = boxes === 1 && strokes === 0 ? box : null;
  props.value = any ? JSON.stringify({ mask: file.toDataURL("image/png"), box: only }) : "";
  trigger("input");
};

const rectangle = (to) => {
  const [x, y] = [Math.floor(Math.min(from.x, to.x)), Math.floor(Math.min(from.y, to.y))];
  return [x, y, Math.ceil(Math.max(from.x, to.x)) - x, Math.ceil(Math.max(from.y, to.y)) - y];
};

const stroke = (to) => {
  const width = Number(element.querySelector("input").value) / 100;
  pen.globalCompositeOperation = tool === "erase" ? "destination-out" : "source-over";
  [pen.strokeStyle, pen.lineCap] = ["#f0f", "round"];
  pen.lineWidth = Math.max(width * Math.max(mask.width, mask.height), 1);
  pen.beginPath();
  pen.moveTo(from.x, from.y);
  pen.lineTo(to.x + 0.01, to.y);
  pen.stroke();
  from = to;
};

canvas.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  from = place(event);
  if (tool !== "box") stroke(from);
  draw();
});
canvas.addEventListener("pointermove", (event) => {
  if (!from) return;
  const to = place(event);
  if (tool === "box") return draw(rectangle(to));
  stroke(to);
  draw();
});
const end = (event) => {
  if (!from) return;
  if (tool === "box") {
    box = rectangle(place(event));
    pen.globalCompositeOperation = "source-over";
    pen.fillStyle = "#f0f";
    pen.fillRect(...box);
    boxes += 1;
  } else {
    strokes += 1;
  }
  from = null;
  draw();
  publish();
};
canvas.addEventListener("pointerup", end);
canvas.addEventListener("pointercancel", end);

element.querySelectorAll("[data-tool]").forEach((button) =>
  button.addEventListener("click", () => {
    tool = button.dataset.tool;
    element
      .querySelectorAll("[data-tool]")
      .forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
  })
);
element.querySelector("[data-clear]").addEventListener("click", () => {
  clear();
  publish();
});

watch(["picture", "size"], reset);
reset();
