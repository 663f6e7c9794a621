-- Cross-references and equation numbers for typst; runs before citeproc, which would look for @fig:x in the bibliography.
--   @fig:x @tbl:x @eq:x @sec:x   -> a typst reference; typst fails when the label does not exist
--   ![C](/x.typ#name)    -> a figure that the file x.typ draws under that name
--   $$ ... $$ {#eq:x}            -> the equation with the label eq:x

local kinds = { fig = true, tbl = true, eq = true, sec = true }

local function reference(id)
  return pandoc.RawInline("typst", "#ref(<" .. id .. ">)")
end

function Cite(cite)
  local references = pandoc.List()
  for i, citation in ipairs(cite.citations) do
    if not kinds[citation.id:match("^(%a+):") or ""] then return nil end
    if i > 1 then references:insert(pandoc.Str(", ")) end
    references:insert(reference(citation.id))
  end
  return references
end

function Para(para)
  for i, inline in ipairs(para.content) do
    local label = inline.t == "Str" and inline.text:match("^{#(eq:[%w_-]+)}$")
    if label and i > 1 then para.content[i] = pandoc.RawInline("typst", "<" .. label .. ">") end
  end
  return para
end

function Image(image)
  local file, name = image.src:match("^(.*%.typ)#([%w_-]+)$")
  if file then return pandoc.RawInline("typst", '#{ import "' .. file .. '": ' .. name .. "; " .. name .. " }") end
end
