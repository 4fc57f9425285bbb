/* The API page: Swagger UI over this node's own /openapi.json. */
"use strict";

// Swagger UI's own filter looks at tags only, and says so.
const textOf = (operation) =>
  ["summary", "operationId", "description"]
    .map((member) => operation.getIn(["operation", member], ""))
    .concat(operation.get("path"), operation.get("method"))
    .join(" ")
    .toLowerCase();

const filterByText = ({ React }) => ({
  fn: {
    opsFilter: (tags, phrase) => {
      const wanted = phrase.trim().toLowerCase();
      return tags
        .map((tag) =>
          tag.update("operations", (operations) =>
            operations.filter((operation) => textOf(operation).includes(wanted))))
        .filter((tag) => tag.get("operations").size > 0);
    },
  },
  components: {
    FilterContainer: ({ layoutSelectors, layoutActions }) => {
      const phrase = layoutSelectors.currentFilter();
      return React.createElement(
        "div",
        { className: "filter wrapper" },
        React.createElement("input", {
          className: "operation-filter-input",
          type: "search",
          placeholder: "Filter by text",
          "aria-label": "Filter by text",
          value: typeof phrase === "string" ? phrase : "",
          onChange: (event) => layoutActions.updateFilter(event.target.value),
        }),
      );
    },
  },
});

async function load() {
  const url = new URL("openapi.json", document.baseURI);
  const answer = await fetch(url);
  if (!answer.ok) {
    throw new Error(`GET ${url.pathname} was answered by ${answer.status}`);
  }
  const spec = await answer.json();
  // It works wherever GET does, as the text says: to show each of them would double the page.
  Object.values(spec.paths).forEach((path) => delete path.head);
  // Behind a proxy, the node may be below some path.
  spec.servers = [{ ...spec.servers[0], url: new URL(".", url).href.replace(/\/$/, "") }];
  return spec;
}

async function show() {
  const place = document.getElementById("api");
  try {
    window.SwaggerUIBundle({
      domNode: place,
      spec: await load(),
      plugins: [filterByText],
      deepLinking: true,
      filter: true,
      tryItOutEnabled: true,
      displayRequestDuration: true,
      defaultModelsExpandDepth: 0,
      // Who checks documents for others is not asked.
      validatorUrl: null,
    });
  } catch (error) {
    place.className = "failed";
    place.textContent = `This page could not be shown: ${error.message}. Is the node running? Load it again to try again.`;
  }
}

show();
