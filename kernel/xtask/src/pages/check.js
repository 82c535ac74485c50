// Opens each of PAGES in frames of a phone's and a desk's width, and of paper's with
// the rules for print, and writes what a reader could not read into the document.
"use strict";

/** Places in which a page is read: a name, a width in CSS pixels, whether it is paper. */
const PLACES = [["phone", 390, false], ["desktop", 1280, false], ["print", 718, true]];

/** Pixels by which boxes of text may lie over each other: rounding, and accents. */
const SLACK = 3;

const pause = ms => new Promise(done => setTimeout(done, ms));

/** Has the rules for print hold on a screen, and those for a screen not. */
function toPaper(page) {
    const rules = list => {
        for (const rule of list) {
            if (rule instanceof page.defaultView.CSSMediaRule) {
                rule.media.mediaText = rule.media.mediaText
                    .replace(/\bscreen\b/g, "speech").replace(/\bprint\b/g, "all");
            }
            if (rule.cssRules) rules(rule.cssRules);
        }
    };
    for (const sheet of page.styleSheets) {
        if (sheet.media.mediaText.includes("print")) sheet.media.mediaText = "all";
        rules(sheet.cssRules);
    }
}

/** What is left of a box within all that cuts it off. */
function visible(box, element, view) {
    let { left, top, right, bottom } = box;
    for (let at = element; at; at = at.parentElement) {
        const style = view.getComputedStyle(at);
        if (style.visibility !== "visible" || style.opacity === "0") return null;
        if (at !== view.document.body && style.overflowX !== "visible") {
            const limit = at.getBoundingClientRect();
            left = Math.max(left, limit.left);
            right = Math.min(right, limit.right);
            top = Math.max(top, limit.top);
            bottom = Math.min(bottom, limit.bottom);
        }
    }
    left = Math.max(left, 0);
    return right - left > SLACK && bottom - top > SLACK ? { left, top, right, bottom } : null;
}

/** Boxes of all text, a line each. */
function boxes(view) {
    const page = view.document, found = [];
    const texts = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const node = texts.currentNode, element = node.parentElement;
        if (!node.data.trim() || element.closest("script, style, noscript, template")) continue;
        const range = page.createRange();
        range.selectNodeContents(node);
        // Of SVG a range has the boxes of letters.
        const svg = element.closest("svg") && element.closest("text");
        const rects = svg ? [svg.getBoundingClientRect()] : range.getClientRects();
        for (const rect of rects) {
            const box = visible(rect, element, view);
            if (box) found.push({ ...box, of: svg || node, words: node.data.trim().slice(0, 40) });
        }
    }
    return found.sort((a, b) => a.top - b.top);
}

/** On paper nothing scrolls: what of an element is cut off. */
function cutOff(view) {
    const hides = e => view.getComputedStyle(e).overflowX !== "visible" && e.innerText?.trim();
    return [...view.document.body.querySelectorAll("*")]
        .filter(e => e.scrollWidth - e.clientWidth > SLACK && e.clientWidth > SLACK && hides(e))
        .map(e => `cuts ${e.scrollWidth - e.clientWidth} px of text off: ${e.tagName.toLowerCase()}`);
}

/** A line for each fault. */
function faults(view, paper) {
    const said = new Set(), root = view.document.scrollingElement, found = boxes(view);
    const over = root.scrollWidth - root.clientWidth;
    if (over > 0) {
        const right = root.clientWidth;
        const widest = [...view.document.body.querySelectorAll("*")]
            .map(e => [visible(e.getBoundingClientRect(), e, view)?.right ?? 0, e])
            .reduce((a, b) => (b[0] > a[0] ? b : a), [right, null])[1];
        const what = widest ? `${widest.tagName.toLowerCase()}.${widest.className}` : "something";
        said.add(`is ${over} px too wide: ${what}`);
    }
    found.forEach((a, index) => {
        for (let next = index + 1; next < found.length; next++) {
            const b = found[next];
            if (b.top > a.bottom - SLACK) break;
            const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const high = Math.min(a.bottom, b.bottom) - b.top;
            if (a.of !== b.of && wide > SLACK && high > SLACK) {
                said.add(`has "${a.words}" over "${b.words}"`);
            }
        }
    });
    if (paper) cutOff(view).forEach(line => said.add(line));
    return { said: [...said], texts: found.length };
}

async function look(frame, url, [place, width, paper]) {
    frame.width = width;
    frame.height = 900;
    await new Promise(done => {
        frame.onload = done;
        frame.src = url;
    });
    const view = frame.contentWindow;
    if (paper) toPaper(view.document);
    await view.document.fonts.ready;
    // Scripts of the page that move things when it is there.
    await pause(100);
    return { page: url, place, ...faults(view, paper) };
}

async function main() {
    const frame = document.querySelector("iframe"), out = document.querySelector("pre");
    const found = [];
    try {
        for (const url of PAGES) {
            for (const place of PLACES) found.push(await look(frame, url, place));
        }
        out.textContent = JSON.stringify(found);
    } catch (error) {
        out.textContent = JSON.stringify(`${error}`);
    }
}

main();
